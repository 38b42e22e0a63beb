"""The explanation says what leaves, and never calls anything stronger than it is."""

from __future__ import annotations

import re

import pytest

from trust_models.explain import explain
from trust_models.modes import MODES
from trust_models.policy import builtin_names, load_builtin, parse_policy

HEX = "ab" * 32
REMOTE = '[remote]\nname = "default"\n'
REMOTE_MODES = [name for name in builtin_names() if name != "local"]


def _explained(text: str) -> str:
    return " ".join(explain(parse_policy(text, origin="policy")).split())


def _builtin(name: str) -> str:
    return " ".join(explain(load_builtin(name)).split())


def test_local_says_that_nothing_leaves_and_speaks_of_no_recipient() -> None:
    text = _builtin("local")
    assert "Nothing. Prompt, cache and answer stay on the device." in text
    assert "recipient" not in text
    assert "ealed" not in text


@pytest.mark.parametrize("name", REMOTE_MODES)
def test_what_leaves_is_sealed_and_what_the_recipient_learns_is_named(name: str) -> None:
    text = _builtin(name)
    assert "sealed" in text
    assert "in clear" in text
    assert "exact token count" in text
    assert "timing" in text
    assert "rounded up to a bucket" in text
    assert "Pinning proves who the recipient is; it proves nothing about its software" in text


@pytest.mark.parametrize("name", ["sealed-prefill", "sealed-decode"])
def test_sealed_modes_say_that_the_recipient_reads_the_whole_prompt(name: str) -> None:
    text = _builtin(name)
    assert "The recipient has the whole prompt" in text
    assert "private texts included" in text
    assert "Private texts: only this device" not in text


def test_sealed_decode_says_that_the_recipient_reads_the_answer() -> None:
    assert "and the answer in clear" in _builtin("sealed-decode")


def test_public_prefix_says_that_the_choice_of_public_text_reveals_something() -> None:
    text = _builtin("public-prefix")
    assert "Private texts: only this device." in text
    assert "chosen with the help of private text" in text
    assert "steer the answer" in text


@pytest.mark.parametrize("name", builtin_names())
def test_guarantee_is_the_one_of_the_table(name: str) -> None:
    policy = load_builtin(name)
    guarantee = MODES[policy.mode].guarantee
    assert f"{guarantee[0].upper()}{guarantee[1:]}." in _builtin(name)
    assert "What is only empirical" in _builtin(name)
    assert policy.digest in _builtin(name)


@pytest.mark.parametrize("name", builtin_names())
def test_no_word_promises_more_than_the_mode_gives(name: str) -> None:
    strong = r"\b(anonymous|unbreakable|completely|fully|impossible|zero.knowledge|end.to.end|guaranteed|safe|secure)\b"
    assert re.search(strong, explain(load_builtin(name)), re.IGNORECASE) is None


def test_unchecked_cache_is_said_to_be_unchecked() -> None:
    base = f'mode = "public-prefix"\n{REMOTE}[transfer]\nverify_rows = '
    assert "does not check for that" in _explained(f"{base}0")
    assert "recomputes 5 random row(s)" in _explained(f"{base}5")
    assert "probability 1 - 5/T" in _explained(f"{base}5")


def test_fallback_is_said_as_it_is() -> None:
    base = f'mode = "sealed-prefill"\n{REMOTE}[fallback]\non_remote_failure = '
    assert "stops with an error" in _explained(f'{base}"refuse"')
    assert "never falls back after received bytes failed a check" in _explained(f'{base}"local"')


def test_what_happens_after_a_lost_connection_is_said() -> None:
    base = f'mode = "sealed-prefill"\n{REMOTE}[transfer]\nresume_attempts = '
    assert "up to 3 time(s) in one transfer" in _explained(f"{base}3")
    assert "A lost connection ends the transfer" in _explained(f"{base}0")
    local = '\n[fallback]\non_remote_failure = "local"'
    assert "uses the steps that it verified" in _explained(f"{base}3{local}")
    assert "uses the steps" not in _explained(f'mode = "sealed-decode"\n{REMOTE}{local}')


def test_inline_recipient_and_pinned_weights_are_named() -> None:
    text = _explained(
        f'mode = "sealed-prefill"\n[model]\nweights_sha256 = "{HEX}"\n[audit]\npath = "mylog"\n'
        f'[remote]\nurl = "https://cloud.example"\nidentity_sha256 = "{"cd" * 32}"'
    )
    assert "cd" * 32 in text
    assert "https://cloud.example" in text
    assert f"must have the SHA-256 {HEX}" in text
    assert "mylog" in text


def test_labels_count_the_rules() -> None:
    rule = '[[segments.rule]]\nsource = "{}"\nlabel = "{}"\n'
    text = _explained(
        f'mode = "public-prefix"\n{REMOTE}{rule.format("a", "public")}{rule.format("b", "private")}'
        f"{rule.format('c', 'private')}"
    )
    assert "1 rule(s) that name a text as public and 2 that make texts private" in text


NOISE = '[noise]\nadjacency = 3\nsubject = "anna"\nbudget_epsilon = 900.0\ndelta = 1e-6\n'
NOISED = f'mode = "noised-decode"\n{REMOTE}{NOISE}'


def test_noise_says_between_which_texts_and_what_a_name_needs() -> None:
    text = _explained(f"{NOISED}epsilon = 8.0")
    assert "Epsilon 8 at delta 1e-06 between private texts of the same length (replace 3 tokens)." in text
    assert "A name of m tokens that occurs j times needs m x j of them" in text
    assert "meaningless" not in text.partition("What the noise promises")[2].partition("Which number")[0]
    assert 'All runs on the subject "anna" together may spend an epsilon of 900 at delta 1e-06' in text
    assert "the answer in clear, which can repeat private text" in text


def test_noise_of_a_large_epsilon_is_called_meaningless_in_so_many_words() -> None:
    promise = _explained(f"{NOISED}epsilon = 65.0").partition("What the noise promises")[2]
    assert "formally meaningless, empirical only." in promise.partition("Which number")[0]


def test_noise_without_an_epsilon_says_that_it_depends_on_the_model() -> None:
    text = _explained(f"{NOISED}sigma = 0.5")
    assert "Noise of standard deviation 0.5" in text
    assert "What that promises depends on the model" in text


CLIPPED = NOISED.replace("adjacency = 3", 'adjacency = "prompt"\nmechanism = "clipped"\nepsilon = 8.0')
RELATIVE = (
    f'mode = "noised-decode"\n{REMOTE}[noise]\nmechanism = "relative"\nrelative_noise = 0.1\nsubject = "anna"\n'
    'budget_epsilon = "unlimited"\n'
)


def test_a_clipped_cache_says_that_it_leaves_whole_and_promises_nothing_about_fewer_tokens() -> None:
    text = _explained(CLIPPED)
    assert "noise added to its rows from the first private token on" in text
    assert "nothing leaves while it grows" in text
    assert "Epsilon 8 at delta 1e-06 between private texts of the same length (replace the whole private text)." in text
    assert "one token changes every later row of every later layer" in text


def test_relative_noise_is_called_empirical_and_has_no_epsilon_anywhere() -> None:
    text = _explained(RELATIVE)
    assert "epsilon" not in text.lower()
    assert "delta" not in text
    assert "Noise of 0.1 times the size of what it hides. This is empirical only" in text
    assert "Nothing about private texts towards the recipient: empirical only" in text
    assert "No budget applies" in text
    assert "formal at" not in text


def test_a_price_that_is_known_is_said_as_it_is() -> None:
    text = " ".join(explain(parse_policy(f"{NOISED}epsilon = 8.0", origin="policy"), price="It costs this.").split())
    assert "What the noise promises It costs this. Which number" in text


def test_what_stays_on_the_device_is_said_where_something_stays() -> None:
    text = _builtin("public-prefix")
    assert "Private texts and their cache are never stored." in text
    assert "4,294,967,296 bytes" in text
    off = _explained(f'mode = "public-prefix"\n{REMOTE}[store]\nenabled = false')
    assert "every run asks the cloud again" in off
    assert all("What stays on this device" not in _builtin(name) for name in builtin_names() if name != "public-prefix")
