"""The licences of teachers and data in a student's card."""

from types import SimpleNamespace

import pytest
from conftest import bert_config
from datasets import Dataset
from huggingface_hub import DatasetCard, ModelCard

from hf_tinybert.lineage import DataRecord, Lineage, ModelRecord, Stage
from hf_tinybert.publishing import licences
from hf_tinybert.publishing.licences import licences_of

CARDS = {
    (ModelCard, "user/teacher"): "license: mit",
    (ModelCard, "user/silent"): "tags: [films]",
    (ModelCard, "user/other"): "license: other\nlicense_name: films-1.0",
    (DatasetCard, "user/films"): "license: [cc-by-4.0, mit]",
    (DatasetCard, "films"): "license: gpl",
}


@pytest.fixture
def hub(monkeypatch):
    """The cards of a Hub; others raise as without a network."""

    def load(kind):
        def card(name):
            if (kind, name) not in CARDS:
                raise OSError("no network")
            return kind(f"---\n{CARDS[kind, name]}\n---\n")

        return card

    for kind in (ModelCard, DatasetCard):
        monkeypatch.setattr(licences, kind.__name__, SimpleNamespace(load=load(kind)))


def student(*data: str, teacher: str):
    config = bert_config(1, 8)
    stages = [Stage([], [], "mean", DataRecord(name), None, 1, None, 1e-4, 8, 0, "fp32") for name in data]
    Lineage(ModelRecord(teacher), stages=stages).write(config)
    return config


@pytest.mark.usefixtures("hub")
def test_known_licences_are_listed_and_others_are_not():
    text = "Licences, as their cards state them:\n\n"
    config = student("user/films", "films", "user/absent", teacher="user/teacher")  # "films" may be a file
    assert licences_of(config) == [f"{text}- model `user/teacher`: mit\n- data `user/films`: cc-by-4.0, mit"]
    config = student(teacher="user/other")
    assert licences_of(config, teacher="user/teacher") == [
        f"{text}- model `user/other`: films-1.0\n- model `user/teacher`: mit"
    ]
    rows = Dataset.from_dict({"text": ["good"]})
    for name in ("user/silent", "user/absent", "./local"):
        assert licences_of(student(teacher=name), rows) == []
    assert licences_of(bert_config(1, 8)) == []
    rows.info.license = "cc0"
    assert licences_of(bert_config(1, 8), rows) == [f"{text}- held-out rows: cc0"]


def test_a_teacher_in_a_folder_may_have_a_card(tmp_path):
    assert licences_of(bert_config(1, 8), teacher=tmp_path) == []
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (paragraph,) = licences_of(bert_config(1, 8), teacher=tmp_path)
    assert paragraph.endswith(f"- model `{tmp_path.name}`: apache-2.0")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    assert licences_of(bert_config(1, 8), teacher=tmp_path) == []
