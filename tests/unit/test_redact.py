"""Personal data in real text: all kinds are found, nothing else is, and the placeholders keep their promises."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

pytest.importorskip("phonenumbers")
pytest.importorskip("stdnum")

from tests.unit.personal import SENTENCES, planted, prose
from trivium.data.documents import Document
from trivium.data.safety.findings import Finding, masked, without_overlaps
from trivium.data.safety.money import issuer, luhn
from trivium.data.safety.national import REGISTERS
from trivium.data.safety.redaction import KINDS, Finder, redaction_report
from trivium.data.step import Dropped
from trivium.data.steps.redact import Redact
from trivium.errors import ConfigError, DataError

KEY = "0123456789abcdef0123456789abcdef"


def step(seed: int = 0, **settings: Any) -> Redact:
    return Redact(Redact.Config(**settings), seed=seed)


def redacted(text: str, *, identity: str = "d", seed: int = 0, **settings: Any) -> str:
    result = step(seed, **settings).apply(Document(identity, text, "test"))
    assert isinstance(result, Document)
    return result.text


def kinds_in(text: str, **settings: Any) -> list[str]:
    return [finding.kind for finding in Finder(**settings).find(text)]


# What is found


def test_five_hundred_strings_of_all_kinds_are_found_in_text() -> None:
    texts = prose()
    finder, source = Finder(national_ids=sorted(REGISTERS)), random.Random(4)
    missed, total = [], 0
    for number, (kind, value, before, after) in enumerate(planted(source, 500)):
        text = texts[number % len(texts)]
        middle = text.find(" ", len(text) // 2) + 1
        whole = f"{text[:middle]}{before}{value}{after} {text[middle:]}"
        start = middle + len(before)
        found = [one for one in finder.find(whole) if one.start <= start and one.end >= start + len(value)]
        total += 1
        if not found:
            missed.append((kind, before, value))
    assert total == 500
    assert len(missed) <= total // 100, missed


def test_ordinary_prose_holds_nothing() -> None:
    assert [one for text in prose() for one in Finder().find(text)] == []
    assert [one for text in SENTENCES for one in Finder().find(text)] == []


@pytest.mark.parametrize(
    "text",
    [
        "Released on 2021-04-05, version 10.2.3.4 of 1999-2004, see ISBN 978-3-16-148410-0.",
        "The loss fell from 0.123456789 to 0.0987654321 in 1,234,567,890 steps.",
        "connect to 127.0.0.1:8080 or 192.168.1.1, or 2001:db8::1",
        "std::vector<int>::iterator a::b::c at 12:30:45",
        'password = "$PASSWORD", api_key=<your key>, token: ${TOKEN}',
        "write to someone@example.com or root@localhost.localdomain.test",
        "born on 4 July 1776",
        "sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709 uuid 123e4567-e89b-12d3-a456-426614174000",
        "the order 1234567890123456 and 4111111111111112",
        "from 10:00 to 12:00, pages 120-135, 1 234 567 EUR",
        "@decorator\ndef f(a@b): pass",
        "call 555 times, text 12 3 4",
    ],
)
def test_what_only_looks_like_it_stays(text: str) -> None:
    assert kinds_in(text) == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("ring 212-867-5309 2 times", "phone"),
        ("SSN 536904399", "us_ssn"),
        ("the 536904399 items", None),
        ("BSN: 111222333", "nl_bsn"),
        ("11122.2333 or 111222333 of them", None),
        ("her NHS number 943 476 5919", "gb_nhs"),
        ("9434765919 days", None),
        ("Aadhaar 2345 6789 0124", "in_aadhaar"),
        ("MRN: 00482913", "medical_record"),
        ("hospital 2020-2021", None),
        ("tel. 020 7123 4567", "phone"),
        ("ref 2071234567", None),
        ("name (at) corp (dot) com", "email"),
        ("https://ann:Tr0ub4dor@db.corp.com/x", "url_credentials"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA\n-----END RSA PRIVATE KEY-----", "secret"),
        ("geboren am 12. März 1985", "birth_date"),
    ],
)
def test_context_decides_where_the_form_does_not(text: str, kind: str | None) -> None:
    assert kinds_in(text) == ([] if kind is None else [kind])


def test_every_option_changes_what_is_found(tmp_path: Path) -> None:
    assert kinds_in("mail a@corp.com", kinds=["phone"]) == []
    assert kinds_in("ring 030 901820", regions=["DE"]) == ["phone"]
    assert kinds_in("ring 030 901820", regions=["US"]) == []
    assert kinds_in("DNI 12345678Z", national_ids=["es_dni"]) == ["es_dni"]
    assert kinds_in("DNI 12345678Z", national_ids=["us_ssn"]) == []
    assert kinds_in("at 192.168.1.7", private_addresses=True) == ["ipv4"]
    assert kinds_in("password = hunter2Xy9", assigned_secrets=False) == []
    assert kinds_in("born 1 May 1985", born_after=1990) == []
    assert kinds_in("worker EMP-004711", patterns={"employee": r"EMP-\d{6}"}) == ["employee"]
    assert redacted("worker EMP-004711", patterns={"employee": r"EMP-(?P<value>\d{6})"}) == "worker EMP-[EMPLOYEE_1]"
    assert kinds_in("chart KH/77/1234", medical_record=r"KH/\d+/\d+") == ["medical_record"]
    assert kinds_in("a@corp.com b@other.com", allow=["*@CORP.com"]) == ["email"]
    names = tmp_path / "names.txt"
    names.write_text("Ada Lovelace\nZoë\n", encoding="utf-8")
    assert redacted("ADA LOVELACE met Zoë, not Adam.", names=str(names), style="tag") == "[NAME] met [NAME], not Adam."


def test_a_card_needs_issuer_length_and_check_digit() -> None:
    assert luhn("4111111111111111") and not luhn("4111111111111112")
    assert issuer("4111111111111111") == "visa"
    assert issuer("378282246310005") == "american express"
    assert issuer("9111111111111111") is None
    assert issuer("411111111111111") is None


def test_of_overlapping_findings_the_most_certain_stays() -> None:
    found = without_overlaps([Finding("a", 0, 9, "", 5), Finding("b", 3, 6, "", 1), Finding("c", 6, 9, "", 5)], 9)
    assert [one.kind for one in found] == ["b", "c"]


# Placeholders


def test_the_same_value_has_the_same_placeholder() -> None:
    text = "a@corp.com, b@corp.com, A@Corp.com; +44 20 7123 4567 is (0044) 20-7123-4567"
    assert redacted(text).startswith("[EMAIL_1], [EMAIL_2], [EMAIL_1]; [PHONE_1] is")
    assert redacted("a@corp.com, b@corp.com", style="tag") == "[EMAIL], [EMAIL]"


def test_over_a_corpus_the_key_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = tmp_path / "key"
    key.write_text(KEY)
    monkeypatch.setenv("REDACTION_KEY", KEY)
    monkeypatch.setenv("OTHER_KEY", KEY[::-1])
    text = "x b@corp.com"
    one = redacted(text, identity="1", scope="corpus", key_file=str(key))
    two = redacted("a@corp.com B@corp.com", identity="2", scope="corpus", key_env="REDACTION_KEY")
    assert one.split()[1] == two.split()[1] != two.split()[0]
    assert one != redacted(text, identity="1", scope="corpus", key_env="OTHER_KEY")
    assert KEY not in json.dumps(step(scope="corpus", key_file=str(key)).config.model_dump(mode="json"))


def test_a_corpus_needs_a_good_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValidationError, match="needs a secret key"):
        step(scope="corpus")
    with pytest.raises(ValidationError, match="does nothing"):
        step(key_env="X")
    monkeypatch.setenv("SHORT_KEY", "12345")
    with pytest.raises(ConfigError, match="too short"):
        step(scope="corpus", key_env="SHORT_KEY")
    with pytest.raises(ConfigError, match="cannot be read"):
        step(scope="corpus", key_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="twice"):
        step(scope="corpus", key_file="a", key_env="b")


def test_invented_values_keep_the_form_and_belong_to_nobody() -> None:
    finder = Finder(national_ids=sorted(REGISTERS))
    still, total = [], 0
    for kind, value, before, after in planted(random.Random(9), 300):
        text = f"Note: {before}{value}{after}"
        out = redacted(text, style="fake", national_ids=sorted(REGISTERS))
        assert value not in out or kind == "name", (kind, value, out)
        if kind in ("birth_date", "medical_record"):  # their words still stand before them
            continue
        total += 1
        still += [(kind, value, out) for _ in finder.find(out)]
    assert not still, still[:5]
    assert total > 200
    assert redacted("Card 4111 1111 1111 1111", style="fake").startswith("Card 4")
    assert redacted("a@corp.com", style="fake") == redacted("b@corp.com", style="fake")  # nothing of the value is in it
    assert redacted("a@corp.com", style="fake") != redacted("a@corp.com", style="fake", identity="e")
    assert redacted("a@corp.com", style="fake") != redacted("a@corp.com", style="fake", seed=1)


def test_redacting_twice_changes_nothing() -> None:
    for style in ("tag", "numbered"):
        text = "; ".join(before + value + after for _, value, before, after in planted(random.Random(2), 200))
        once = redacted(text, style=style)
        assert redacted(once, style=style) == once


# Documents


def test_the_evidence_tells_places_and_not_values() -> None:
    text = "Mail jane@corp.com or +44 20 7123 4567."
    result = step().apply(Document("d", text, "test", meta={"author": "J. (jane@corp.com)", "group": "jane@corp.com"}))
    assert isinstance(result, Document)
    evidence = result.meta["redactions"]
    assert result.meta["author"] == "J. ([EMAIL_1])" and result.meta["group"] == "jane@corp.com"
    assert evidence["counts"] == {"email": 1, "phone": 1} and evidence["meta"] == 1
    assert [text[start:end] for _, start, end, _, _ in evidence["places"]] == ["jane@corp.com", "+44 20 7123 4567"]
    assert "jane" not in json.dumps(evidence) and "7123" not in json.dumps(evidence)
    assert step(evidence="none").apply(Document("d", text, "test")).meta == {}  # type: ignore[union-attr]
    counts = step(evidence="counts").apply(Document("d", text, "test"))
    assert isinstance(counts, Document) and "places" not in counts.meta["redactions"]
    report = redaction_report([result, Document("e", "nothing", "test")])
    assert report["counts"] == {"email": 1, "phone": 1} and report["documents"] == 1
    assert report["shapes"]["email"] == ["xxxx@xxxx.xxx"]


def test_headings_are_redacted_in_the_list_of_sections_too() -> None:
    document = Document("d", "## ann@corp.com\n", "test", meta={"sections": [[2, "ann@corp.com"]]})
    result = step().apply(document)
    assert isinstance(result, Document)
    assert result.text == "## [EMAIL_1]\n" and result.meta["sections"] == [[2, "[EMAIL_1]"]]


def test_a_document_without_personal_data_stays_the_same_object() -> None:
    document = Document("d", "Nothing here.", "test", meta={"title": "None"})
    assert step().apply(document) is document


def test_a_directory_of_persons_can_be_left_out() -> None:
    directory = Document("d", "\n".join(f"person{n}@corp.com" for n in range(50)), "test")
    result = step(most_share=0.5).apply(directory)
    assert isinstance(result, Dropped) and result.reason == "mostly personal data"
    assert isinstance(step().apply(directory), Document)


def test_wrong_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="did you mean us_ssn"):
        step(national_ids=["us_sn"])
    with pytest.raises(ValidationError, match="pattern cannot be read"):
        step(patterns={"x": "("})
    with pytest.raises(DataError, match="list of names"):
        step(names=str(tmp_path / "none.txt"))


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from trivium.data.safety import packages
    from trivium.errors import TriviumError

    packages.stdnum.cache_clear()
    monkeypatch.setattr(
        packages.importlib, "import_module", lambda name: (_ for _ in ()).throw(ModuleNotFoundError(name))
    )
    with pytest.raises(TriviumError, match=r"trivium\[privacy\]"):
        Finder(kinds=["iban"]).find("DE89370400440532013000")
    packages.stdnum.cache_clear()


HOSTILE = {
    "a": "a" * 200_000,
    "ats": "@" * 200_000,
    "a@": "a@" * 100_000,
    "a.": "a." * 100_000 + "@",
    "dots": "a@" + "b." * 100_000,
    "digits": "1" * 200_000,
    "spaced digits": "1 " * 40_000,
    "dashed digits": "1-" * 40_000,
    "cards": "4111 1111 1111 1112 " * 4_000,
    "colons": "a:" * 100_000,
    "ips": "1.2.3." * 30_000,
    "ibans": "DE89 3704 " * 10_000,
    "urls": "http://a:" * 22_000,
    "keys": "password=" * 22_000,
    "pem": "-----BEGIN RSA PRIVATE KEY-----" * 6_000,
    "spelled": "a(at)" * 40_000,
    "born": "born on 1 " * 20_000,
    "capitals": "AB12" * 50_000,
    "brackets": "+(" * 100_000,
    "jwt": "eyJ" * 66_000,
    "newlines": "1\n" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_text_takes_more_than_linear_time(name: str) -> None:
    finder, text = Finder(), HOSTILE[name]
    times = []
    for part in (text[: len(text) // 4], text):
        start = time.process_time()
        finder.find(part)
        times.append(time.process_time() - start)
    assert times[1] < max(12 * times[0], 0.5), times  # 4 where it is linear, 16 where it is quadratic
    assert times[1] < 20


def test_shapes_hide_the_value() -> None:
    assert masked("Jane.Doe@corp.com") == "xxxx.xxx@xxxx.xxx"
    assert masked("+44 20") == "+99 99"
    assert len(masked("a" * 500)) < 50


def test_kinds_are_counted_once() -> None:
    assert Counter(KINDS).most_common(1)[0][1] == 1
