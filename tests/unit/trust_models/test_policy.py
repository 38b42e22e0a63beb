"""What a policy file may say, and the sentence that refuses everything else."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from splitinfer.errors import PolicyError
from trust_models.modes import MODES, TrustMode
from trust_models.policy import (
    MAX_POLICY_BYTES,
    Policy,
    builtin_names,
    builtin_text,
    load_builtin,
    load_policy,
    parse_policy,
    resolve,
)

HEX = "ab" * 32
REMOTE = '[remote]\nname = "default"\n'
HE = f'mode = "homomorphic"\n{REMOTE}'
PUBLIC = 'mode = "public-prefix"\n'
SEALED = 'mode = "sealed-prefill"\n'
INLINE = f'{SEALED}[remote]\nidentity_sha256 = "{HEX}"\n'


NOISED = 'mode = "noised-decode"\n'


def quoted(word: str) -> str:
    return f'"{word}"'


def _noise(**changes: object) -> str:
    fields = {"adjacency": 2, "epsilon": 1.0, "delta": 1e-5, "subject": quoted("me"), "budget_epsilon": 9.0, **changes}
    lines = [f"{name} = {value}" for name, value in fields.items() if value is not None]
    return "\n".join(["[noise]", *lines, ""])


NOISE = _noise()


def _clipped(**changes: object) -> str:
    return NOISED + REMOTE + _noise(**{"mechanism": quoted("clipped"), "adjacency": quoted("prompt"), **changes})


def _relative(**changes: object) -> str:
    none = dict.fromkeys(("adjacency", "epsilon", "delta"))
    own = {"mechanism": quoted("relative"), "relative_noise": 0.1, "budget_epsilon": quoted("unlimited")}
    return NOISED + REMOTE + _noise(**{**none, **own, **changes})


def _noise_of_budget(word: str) -> str:
    return NOISED + REMOTE + _noise(budget_epsilon=word)


def _parse(text: str) -> Policy:
    return parse_policy(text, origin="policy test.toml")


def test_defaults_are_the_strict_ones() -> None:
    policy = _parse(PUBLIC + REMOTE)
    assert policy.mode is TrustMode.PUBLIC_PREFIX
    assert policy.model.source == "embedded"
    assert policy.model.weights_sha256 is None
    assert policy.segments.default == "private"
    assert policy.segments.rule == ()
    assert policy.remote is not None
    assert policy.remote.recipient == "pinned"
    transfer = policy.transfer
    assert (transfer.codec, transfer.pad, transfer.chunk_tokens, transfer.verify_rows) == ("raw", "padme", 512, 0)
    assert transfer.resume_attempts == 2
    assert policy.fallback.on_remote_failure == "refuse"
    assert policy.audit.path is None


def test_every_option_can_be_written() -> None:
    policy = _parse(
        f'{PUBLIC}[model]\nsource = "org/model"\nweights_sha256 = "{HEX.upper()}"\n'
        '[[segments.rule]]\nsource = "manual.md"\nlabel = "public"\n'
        '[[segments.rule]]\npattern = "*.nda"\nlabel = "private"\n'
        f'[remote]\nurl = "https://cloud.example:8443/"\nidentity_sha256 = "{HEX}"\ntls_ca = "ca.pem"\n'
        "[transfer]\nchunk_tokens = 4096\nverify_rows = 64\nresume_attempts = 5\n"
        '[fallback]\non_remote_failure = "local"\n[audit]\npath = "log"\n'
    )
    assert policy.model.weights_sha256 == HEX
    assert policy.remote is not None
    assert policy.remote.url == "https://cloud.example:8443"
    assert [rule.label for rule in policy.segments.rule] == ["public", "private"]


def test_noise_and_sampling_can_be_written_in_every_way() -> None:
    noise = _parse(f"{NOISED}{REMOTE}{NOISE}").noise
    assert noise is not None
    assert (noise.adjacency_tokens, noise.epsilon, noise.stated_delta, noise.post) == (2, 1.0, 1e-5, "none")
    other = _noise(adjacency=quoted("prompt"), epsilon=None, sigma=3, delta=None, post=quoted("nearest"))
    policy = _parse(f'{NOISED}{REMOTE}{other}[sampling]\nmax_new_tokens = 7\nstop = ["\\n", "END"]\nseed = 5\n')
    assert policy.noise is not None
    assert policy.sampling is not None
    assert (policy.noise.adjacency_tokens, policy.noise.sigma, policy.noise.stated_delta) == (None, 3.0, 1e-5)
    assert policy.sampling.stop == ("\n", "END")
    assert isinstance(hash(policy), int)


def test_a_policy_cannot_be_changed() -> None:
    policy = _parse(PUBLIC + REMOTE)
    with pytest.raises(ValidationError, match="frozen"):
        policy.mode = TrustMode.LOCAL
    assert isinstance(hash(policy), int)


# Name of the rule, the text, what the sentence must name, what it must tell the reader to write.
REFUSED = [
    ("empty file", "", "is empty", 'mode = "local"'),
    ("comments only", "# nothing\n\n", "is empty", 'mode = "local"'),
    ("not toml", "mode: local", "is not TOML", "write"),
    ("twice the same key", 'mode = "local"\nmode = "local"', "is not TOML", "write"),
    ("deep nesting", "mode = " + "[" * 20_000, "nested too deeply", "write sections"),
    ("deep dotted key", "mode" + ".a" * 2_000 + " = 1", "mode", "write one of"),
    ("huge number", "[transfer]\nchunk_tokens = " + "9" * 5000, "is not TOML", "write"),
    ("missing mode", REMOTE, "mode is missing", "sealed-decode"),
    ("mode below a section", f'{REMOTE}mode = "local"', "mode is missing", "above the first [section]"),
    ("future mode", 'mode = "enclave-decode"', "'enclave-decode' is not known", "public-prefix"),
    ("mode of a wrong type", "mode = 3", "mode has the wrong type", "in quotes"),
    ("misspelt section", f"{PUBLIC}{REMOTE}[transfr]\n", "unknown key 'transfr'", "write transfer"),
    ("misspelt key", f"{PUBLIC}{REMOTE}[transfer]\nverify_row = 3", "'verify_row' in [transfer]", "write verify_rows"),
    ("misspelt table of rules", f'{PUBLIC}{REMOTE}[[segments.rules]]\nsource = "a"', "'rules'", "write rule"),
    ("key at the wrong place", f'codec = "raw"\n{PUBLIC}{REMOTE}', "'codec' at the top", "move it to [transfer]"),
    ("future section", f"{PUBLIC}{REMOTE}[enclave]\ncount = 1", "unknown key 'enclave'", "the nearest known key is"),
    ("rules of another mode", f"{PUBLIC}{REMOTE}[homomorphic]\nprofile = 'fast'", "encrypts nothing", "leave [homo"),
    ("masks of another mode", f"{PUBLIC}{REMOTE}[masked]\nreserve = 4", "uses no masks", "leave [masked] out"),
    ("unknown profile", f"{HE}[homomorphic]\nprofile = 'quick'", "homomorphic.profile = 'quick'", "balanced"),
    ("prompt bound", f"{HE}[homomorphic]\nmax_prompt_tokens = 1", "max_prompt_tokens is outside", "write 64"),
    ("codec of no cache", f"{HE}[transfer]\ncodec = 'q8'", "sends no packed cache", "leave transfer.codec out"),
    (
        "device without matrices that takes over",
        f"{HE}[homomorphic]\nlinear = 'cloud'\n[fallback]\non_remote_failure = 'local'",
        "cannot take over",
        'write on_remote_failure = "refuse"',
    ),
    ("no reserve", f'mode = "masked"\n{REMOTE}[masked]\nreserve = 0', "masked.reserve is outside", "write 8"),
    ("small pool", f'mode = "masked"\n{REMOTE}[masked]\nmax_bytes = 9', "masked.max_bytes is below", "larger"),
    ("future codec", f'{PUBLIC}{REMOTE}[transfer]\ncodec = "q2"', "transfer.codec = 'q2' is not known", "lossless"),
    ("floor of an exact codec", f"{PUBLIC}{REMOTE}[transfer]\nmax_kl = 0.1", "loses nothing", "leave max_kl out"),
    ("floor of nothing", f'{SEALED}{REMOTE}[transfer]\ncodec = "q8"\nmax_kl = 0.0', "max_kl", "write 0.001"),
    ("floor that is no number", f'{SEALED}{REMOTE}[transfer]\ncodec = "q8"\nmax_kl = nan', "max_kl", "write 0.001"),
    ("text for a floor", f'{SEALED}{REMOTE}[transfer]\ncodec = "q8"\nmax_kl = "1"', "max_kl", "a number without"),
    (
        "small model word for another codec",
        f'{SEALED}{REMOTE}[transfer]\ncodec = "q8"\nallow_q4_small_models = true',
        "needs no allow_q4_small_models",
        "leave it out",
    ),
    (
        "number for a truth value",
        f'{SEALED}{REMOTE}[transfer]\ncodec = "q4"\nallow_q4_small_models = 1',
        "allow_q4_small_models",
        "true or false",
    ),
    (
        "rows of a lossy codec",
        f'{PUBLIC}{REMOTE}[transfer]\ncodec = "q8"\nverify_rows = 1',
        "has rounded",
        'codec = "lossless"',
    ),
    ("no padding", f'{PUBLIC}{REMOTE}[transfer]\npad = "none"', "transfer.pad = 'none'", "padme"),
    ("future recipient", f'{PUBLIC}{REMOTE}recipient = "attested"', "'attested' is not known", "pinned"),
    ("section as text", f'remote = "default"\n{PUBLIC}', "remote is not a table", "write [remote]"),
    ("rule as one table", f'{PUBLIC}{REMOTE}[segments.rule]\nsource = "a"', "not a table", "write [[segments.rule]]"),
    (
        "text for a number",
        f'{PUBLIC}{REMOTE}[transfer]\nverify_rows = "3"',
        "verify_rows has the wrong",
        "whole number",
    ),
    ("fraction for a number", f"{PUBLIC}{REMOTE}[transfer]\nchunk_tokens = 512.0", "chunk_tokens", "whole number"),
    ("truth value for a number", f"{PUBLIC}{REMOTE}[transfer]\nverify_rows = true", "verify_rows", "whole number"),
    ("number for a text", f"{PUBLIC}{REMOTE}[audit]\npath = 3", "audit.path has the wrong type", "text"),
    ("date for a text", f"{PUBLIC}{REMOTE}[audit]\npath = 2026-01-01", "audit.path has the wrong type", "text"),
    ("empty text", f'{PUBLIC}{REMOTE}[audit]\npath = ""', "audit.path", "write a name"),
    ("chunk not in groups", f"{PUBLIC}{REMOTE}[transfer]\nchunk_tokens = 100", "multiple of 64", "write 512"),
    ("chunk of nothing", f"{PUBLIC}{REMOTE}[transfer]\nchunk_tokens = 0", "chunk_tokens", "write 512"),
    ("chunk too long", f"{PUBLIC}{REMOTE}[transfer]\nchunk_tokens = 4160", "4096", "write 512"),
    ("too many rows", f"{PUBLIC}{REMOTE}[transfer]\nverify_rows = 65", "0 to 64", "write a number"),
    ("negative rows", f"{PUBLIC}{REMOTE}[transfer]\nverify_rows = -1", "0 to 64", "write a number"),
    ("too many resumes", f"{PUBLIC}{REMOTE}[transfer]\nresume_attempts = 6", "0 to 5", "write how often"),
    ("negative resumes", f"{PUBLIC}{REMOTE}[transfer]\nresume_attempts = -1", "0 to 5", "write how often"),
    ("resumes in quotes", f'{PUBLIC}{REMOTE}[transfer]\nresume_attempts = "2"', "resume_attempts", "whole number"),
    ("rows elsewhere", f"{SEALED}{REMOTE}[transfer]\nverify_rows = 1", 'in mode "public-prefix" only', "write 0"),
    ("rows in local", 'mode = "local"\n[transfer]\nverify_rows = 1', 'in mode "public-prefix" only', "write 0"),
    ("short digest", f'{PUBLIC}{REMOTE}[model]\nweights_sha256 = "abcd"', "model.weights_sha256", "64 hex"),
    ("public by default", f'{PUBLIC}{REMOTE}[segments]\ndefault = "public"', "would publish", 'default = "private"'),
    ("public pattern", f'{PUBLIC}{REMOTE}[[segments.rule]]\npattern = "*"\nlabel = "public"', "match", "source ="),
    ("rule without label", f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = "a"', "no label", 'label = "private"'),
    (
        "rule of an unknown label",
        f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = "a"\nlabel = "open"',
        "'open'",
        "public",
    ),
    ("rule about nothing", f'{PUBLIC}{REMOTE}[[segments.rule]]\nlabel = "private"', "neither", "exactly one"),
    (
        "rule about source and pattern",
        f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = "a"\npattern = "b"\nlabel = "private"',
        "both",
        "exactly one",
    ),
    ("rule about unnamed text", f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = ""\nlabel = "public"', "source", "write"),
    (
        "star in a source",
        f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = "*.md"\nlabel = "private"',
        "exact",
        "pattern =",
    ),
    ("rule about a folder", f'{PUBLIC}{REMOTE}[[segments.rule]]\npattern = "a/"\nlabel = "private"', "folder", "/*"),
    (
        "rules that conflict",
        f'{PUBLIC}{REMOTE}[[segments.rule]]\nsource = "a.md"\nlabel = "public"\n'
        '[[segments.rule]]\nsource = "./A.md"\nlabel = "private"',
        "both labels",
        "one of them",
    ),
    ("remote in local", f'mode = "local"\n{REMOTE}', "never calls anybody", "remove [remote]"),
    ("fallback in local", 'mode = "local"\n[fallback]\non_remote_failure = "local"', "no remote", "remove [fallback]"),
    ("no remote", PUBLIC, "needs a recipient", "write [remote]"),
    ("remote without anybody", f"{PUBLIC}[remote]\n", "names nobody", 'name = "default"'),
    ("remote name and inline", f'{PUBLIC}{REMOTE}url = "https://a"', "both a name and inline", "write either"),
    ("name and authority", f'{PUBLIC}{REMOTE}tls_ca = "a"', "both a name and inline", "write either"),
    ("inline without identity", f'{PUBLIC}[remote]\nurl = "https://a"', "who the recipient is", "identity_sha256"),
    ("inline without url", f'{PUBLIC}[remote]\nidentity_sha256 = "{HEX}"', "no url", "write url"),
    (
        "inline with a short identity",
        f'{PUBLIC}[remote]\nurl = "https://a"\nidentity_sha256 = "ab"',
        "SHA-256",
        "64 hex",
    ),
    ("name out of the folder", f'{PUBLIC}[remote]\nname = "../keys/x"', "remote.name", "letters, digits"),
    ("name with a newline", f'{PUBLIC}[remote]\nname = "a\\n"', "remote.name", "letters, digits"),
    ("http elsewhere", f'{INLINE}url = "http://cloud.example"', "not this machine", "write https://"),
    ("http to a lookalike", f'{INLINE}url = "http://127.0.0.1.example"', "not this machine", "write https://"),
    ("http to all addresses", f'{INLINE}url = "http://0.0.0.0:80"', "not this machine", "write https://"),
    ("another scheme", f'{INLINE}url = "ftp://a"', "not an address", "https://HOST"),
    ("no scheme", f'{INLINE}url = "cloud.example:80"', "remote.url", "https://HOST"),
    ("no host", f'{INLINE}url = "https://:80"', "not an address", "https://HOST"),
    ("port out of range", f'{INLINE}url = "https://a:70000"', "not an address", "https://HOST"),
    ("port missing", f'{INLINE}url = "https://a:"', "not an address", "https://HOST"),
    ("bracket open", f'{INLINE}url = "https://[::1"', "not an address", "https://HOST"),
    ("path", f'{INLINE}url = "https://a/v1"', "path, query or fragment", "https://HOST"),
    ("query", f'{INLINE}url = "https://a?"', "path, query or fragment", "https://HOST"),
    ("fragment", f'{INLINE}url = "https://a#x"', "path, query or fragment", "https://HOST"),
    ("newline in the url", f'{INLINE}url = "https://a\\nb"', "blank", "https://HOST"),
    ("letters beyond ascii", f'{INLINE}url = "https://clоud.example"', "outside ASCII", "https://HOST"),
    ("authority over http", f'{INLINE}url = "http://[::1]:1"\ntls_ca = "ca"', "tls_ca", "https"),
    ("noise elsewhere", f"{SEALED}{REMOTE}{NOISE}", "adds no noise", "leave it out"),
    ("sampling elsewhere", f"{SEALED}{REMOTE}[sampling]\nseed = 1", "from the caller", "leave [sampling] out"),
    ("no noise", f"{NOISED}{REMOTE}", "promises nothing without [noise]", "adjacency, epsilon and delta"),
    ("no adjacency", f"{NOISED}{REMOTE}{_noise(adjacency=None)}", "adjacency is missing", 'adjacency = "prompt"'),
    ("adjacency of nothing", f"{NOISED}{REMOTE}{_noise(adjacency=0)}", "between which prompts", "from 1 to 65536"),
    ("adjacency of a word", f"{NOISED}{REMOTE}{_noise(adjacency=quoted('row'))}", "which prompts", '"prompt"'),
    ("truth value for an adjacency", f"{NOISED}{REMOTE}{_noise(adjacency='true')}", "which prompts", '"prompt"'),
    ("noise in two ways", f"{NOISED}{REMOTE}{_noise(sigma=1.0)}", "both or neither", "write sigma, or epsilon"),
    ("noise in no way", f"{NOISED}{REMOTE}{_noise(epsilon=None)}", "both or neither", "write sigma, or epsilon"),
    ("epsilon without delta", f"{NOISED}{REMOTE}{_noise(delta=None)}", "nothing without a delta", "delta = 1e-05"),
    ("infinite epsilon", f"{NOISED}{REMOTE}{_noise(epsilon='inf')}", "not a positive number", "write 8 or less"),
    ("no sigma", f"{NOISED}{REMOTE}{_noise(epsilon=None, sigma=0.0)}", "noise.sigma is not", "standard deviation"),
    ("large delta", f"{NOISED}{REMOTE}{_noise(delta=0.5)}", "noise.delta is outside", "write 1e-05 or less"),
    ("no subject", f"{NOISED}{REMOTE}{_noise(subject=None)}", "noise.subject is missing", "write it"),
    ("a subject with blanks", f"{NOISED}{REMOTE}{_noise(subject=quoted('Ana Paz'))}", "noise.subject", "no real name"),
    ("no budget", f"{NOISED}{REMOTE}{_noise(budget_epsilon=None)}", "budget_epsilon is missing", "write it"),
    ("budget below one run", f"{NOISED}{REMOTE}{_noise(budget_epsilon=0.5)}", "below epsilon", "write it or more"),
    ("unknown mechanism", f"{NOISED}{REMOTE}{_noise(mechanism=quoted('laplace'))}", "'laplace'", "embedding"),
    ("unknown afterwork", f"{NOISED}{REMOTE}{_noise(post=quoted('round'))}", "'round'", "posterior"),
    ("clipped for tokens", _clipped(adjacency=2), "every later row", 'adjacency = "prompt"'),
    ("clipped to a sigma", _clipped(epsilon=None, sigma=1.0), "over the cache's slabs", "write epsilon and delta"),
    ("clipped and rounded", _clipped(post=quoted("nearest")), "works on embeddings", "leave it out"),
    ("clipped and relative", _clipped(relative_noise=0.1), "takes no noise.relative_noise", "epsilon"),
    ("clipped without a budget", _clipped(budget_epsilon=quoted("unlimited")), "relative", "write a number"),
    ("clipped where rows leave", _clipped().replace("decode", "prefill"), "no cache on this device", "noised-decode"),
    ("relative of nothing", _relative(relative_noise=None), "needs noise.relative_noise", "such as 0.1"),
    ("relative of less than nothing", _relative(relative_noise=-1.0), "not a positive number", "such as 0.1"),
    ("relative with a budget", _relative(budget_epsilon=9.0), "refuses every run", '"unlimited"'),
    ("relative with an epsilon", _relative(epsilon=1.0, delta=1e-5), "promises nothing", "leave adjacency"),
    ("relative between tokens", _relative(adjacency=2), "promises nothing", "leave adjacency"),
    ("relative and rounded", _relative(post=quoted("nearest")), "works on embeddings", "leave it out"),
    ("budget of another word", _noise_of_budget(quoted("none")), "budget_epsilon is not", "may spend in all"),
    ("budget of a truth value", _noise_of_budget("true"), "budget_epsilon is not", "may spend in all"),
    ("empty first token", f"{NOISED}{REMOTE}{_noise(first_token_text=quoted(''))}", "first_token_text", "public text"),
    (
        "first token of a device that decodes",
        f"{NOISED.replace('decode', 'prefill')}{REMOTE}{_noise(first_token_text=quoted('>'))}",
        "feeds the first token on the device",
        "leave noise.first_token_text out",
    ),
    ("no new tokens", f"{NOISED}{REMOTE}{NOISE}[sampling]\nmax_new_tokens = 0", "max_new_tokens", "write a number"),
    ("cold", f"{NOISED}{REMOTE}{NOISE}[sampling]\ntemperature = -1.0", "temperature", "temperature = 0.0"),
    ("negative seed", f"{NOISED}{REMOTE}{NOISE}[sampling]\nseed = -1", "seed", "any seed from 0 on"),
    ("empty stop", f'{NOISED}{REMOTE}{NOISE}[sampling]\nstop = [""]', "sampling.stop", "short ones"),
    ("too large", f'mode = "local"\n#{"x" * MAX_POLICY_BYTES}', "larger than 65536 bytes", "write"),
]


@pytest.mark.parametrize(("text", "names", "advice"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refusal_names_the_fault_and_says_what_to_write(text: str, names: str, advice: str) -> None:
    with pytest.raises(PolicyError) as refused:
        _parse(text)
    message = str(refused.value)
    assert message.startswith("policy test.toml")
    assert names in message
    assert advice in message
    assert "\n" not in message
    assert "pydantic" not in message
    assert refused.value.__cause__ is None


def test_url_with_a_password_is_refused_without_repeating_it() -> None:
    with pytest.raises(PolicyError, match="credentials") as refused:
        _parse(f'{INLINE}url = "https://me:hunter2@cloud.example"')
    assert "hunter2" not in str(refused.value)


def test_misplaced_secret_value_is_not_repeated() -> None:
    with pytest.raises(PolicyError) as refused:
        _parse(f'{PUBLIC}{REMOTE}password = "hunter2"\n[model]\nweights_sha256 = "hunter2"')
    assert "hunter2" not in str(refused.value)
    assert "(and 1 more)" in str(refused.value)


@pytest.mark.parametrize("url", ["http://localhost:8000", "http://127.0.0.1:1", "http://127.9.9.9", "http://[::1]:80"])
def test_http_to_this_machine_is_accepted(url: str) -> None:
    remote = _parse(f'{INLINE}url = "{url}"').remote
    assert remote is not None
    assert remote.url == url


def test_rules_that_agree_may_repeat() -> None:
    rule = '[[segments.rule]]\nsource = "a.md"\nlabel = "public"\n'
    assert len(_parse(PUBLIC + REMOTE + rule + rule).segments.rule) == 2


def test_every_mode_has_one_builtin_policy_of_its_name() -> None:
    assert builtin_names() == tuple(mode.value for mode in MODES)
    for name in builtin_names():
        policy = load_builtin(name)
        assert policy.mode == name
        assert builtin_text(name).startswith("#")
        assert (policy.remote is None) == (name == "local")
        if policy.remote is not None:
            assert policy.remote.name == "default"


def test_unknown_builtin_is_refused() -> None:
    with pytest.raises(PolicyError, match="sealed-prefill"):
        load_builtin("../policy")


def test_resolve_takes_a_name_or_a_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(SEALED + REMOTE)
    assert resolve(str(path)) == load_policy(path)
    assert resolve("sealed-decode") == load_builtin("sealed-decode")


def test_builtin_name_wins_over_a_file_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "local").write_text(SEALED + REMOTE)
    monkeypatch.chdir(tmp_path)
    assert resolve("local").mode is TrustMode.LOCAL
    assert resolve("./local").mode is TrustMode.SEALED_PREFILL


def test_future_mode_is_no_builtin() -> None:
    with pytest.raises(PolicyError, match="neither a built-in policy nor a file 'enclave-decode'"):
        resolve("enclave-decode")


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    binary, large, pipe = tmp_path / "binary", tmp_path / "large", tmp_path / "pipe"
    binary.write_bytes(b"\xff\xfe")
    large.write_bytes(b"#" * (MAX_POLICY_BYTES + 1))
    os.mkfifo(pipe)
    cases = [
        (tmp_path / "absent", "there is no policy file"),
        (tmp_path, "is not a file"),
        (pipe, "is not a file"),
        (binary, "not UTF-8"),
        (large, "larger than 65536 bytes"),
        (binary / "below", "cannot be read"),
        (Path("nul\0"), "NUL"),
    ]
    for path, words in cases:
        with pytest.raises(PolicyError, match=words):
            load_policy(path)


def test_file_of_the_largest_size_is_accepted(tmp_path: Path) -> None:
    text = 'mode = "local"\n#'
    path = tmp_path / "policy.toml"
    path.write_text(text + "x" * (MAX_POLICY_BYTES - len(text)))
    assert load_policy(path).mode is TrustMode.LOCAL


# --- the store --------------------------------------------------------------------------------------------------------

STORE = f"{PUBLIC}{REMOTE}[store]\n"


def test_store_is_on_with_four_gibibytes_unless_the_policy_says_otherwise() -> None:
    policy = parse_policy(f"{PUBLIC}{REMOTE}", origin="policy")
    assert (policy.store.enabled, policy.store.max_bytes) == (True, 4 * 1024**3)
    assert load_builtin("public-prefix").store == policy.store
    assert not parse_policy(f"{STORE}enabled = false", origin="policy").store.enabled


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('enabled = "yes"', "store.enabled has the wrong type; write true or false without quotes"),
        ("max_bytes = 1000", "or enabled = false"),
        ('max_bytes = "4 GiB"', "store.max_bytes has the wrong type; write a whole number without quotes"),
        ("enable = true", "write enabled"),
    ],
)
def test_store_settings_that_cannot_be_are_refused(line: str, words: str) -> None:
    with pytest.raises(PolicyError, match=re.escape(words)):
        parse_policy(STORE + line, origin="policy")


@pytest.mark.parametrize("mode", ["local", "sealed-prefill", "sealed-decode"])
def test_store_is_refused_in_a_mode_that_keeps_nothing(mode: str) -> None:
    remote = "" if mode == "local" else '[remote]\nname = "default"\n'
    with pytest.raises(PolicyError, match=re.escape("leave [store] out")):
        parse_policy(f'mode = "{mode}"\n{remote}[store]\nenabled = false', origin="policy")
