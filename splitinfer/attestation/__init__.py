"""Who the recipient is: an identity key certifies replicas, replicas sign keysets, the device appraises them.

`identity` and `issue` run on the recipient, `appraise` on the device (the Relying Party of RFC 9334).
"""
