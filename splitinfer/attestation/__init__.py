"""Who the recipient is: an identity key certifies replicas, replicas sign keysets, the device appraises them.

`keyset` runs on the recipient, `appraise` on the device (the Relying Party of RFC 9334), `sender` on both.
"""
