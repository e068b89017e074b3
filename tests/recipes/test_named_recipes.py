"""The recipes of published systems, run with --smoke on tiny teachers and data."""

import ast
import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from conftest import WORDS, build, word_tokenizer
from datasets import Dataset
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForQuestionAnswering,
    RobertaTokenizer,
)

RECIPES = Path(__file__).parents[2] / "recipes"
TEXTS = [" ".join(WORDS[(i * j) % 13] for j in range(1, 30)) for i in range(1, 41)]
CONTEXT = "the play was very bright . the film was not good . the book is dull ."


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a recipe in the test's folder and in this process, because a new process imports everything again."""
    monkeypatch.chdir(tmp_path)

    def run(recipe, *flags):
        monkeypatch.setattr(sys, "argv", [recipe, *map(str, flags)])
        runpy.run_path(str(RECIPES / recipe), run_name="__main__")

    return run


def saved(folder, model_class=BertModel, tokenizer=None, layers=4, width=96, heads=12, seed=0):
    """The name of a folder with a tiny model and its tokenizer, of up to 400 tokens."""
    folder.mkdir(exist_ok=True)
    tokenizer = tokenizer or word_tokenizer(folder)
    tokenizer.model_max_length = 384
    config = RobertaConfig if model_class.__name__.startswith("Roberta") else BertConfig
    sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    sizes |= {"intermediate_size": 2 * width, "max_position_embeddings": 400, "type_vocab_size": 2}
    build(model_class, config(vocab_size=len(tokenizer), **sizes), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder.name


def texts(folder):
    (folder / "wiki").mkdir()
    Dataset.from_dict({"text": TEXTS}).to_parquet(folder / "wiki/train.parquet")
    return "wiki"


def glue(folder, task="sst2"):
    (folder / f"glue/{task}").mkdir(parents=True)
    for split in ("train", "validation"):
        rows = Dataset.from_dict({"sentence": TEXTS, "label": [i % 2 for i in range(len(TEXTS))]})
        rows.to_parquet(folder / f"glue/{task}/{split}.parquet")
    return "glue"


def squad(folder):
    """Two files of SQuAD 2.0; every third question has no answer."""
    answers = [[{"text": "very bright", "answer_start": 13}], [{"text": "dull", "answer_start": 63}], []]
    for name in ("train", "dev"):
        questions = [
            {"id": f"{name}{i}", "question": f"what is {WORDS[i % 10]}", "answers": answers[i % 3]} for i in range(18)
        ]
        article = {"paragraphs": [{"context": CONTEXT, "qas": questions}]}
        (folder / f"{name}.json").write_text(json.dumps({"data": [article]}))
    return "train.json", "dev.json"


def stages(folder) -> list[dict]:
    """The trainings that the configuration of a saved student records."""
    return json.loads((folder / "config.json").read_text())["distillation"]["stages"]


def weights(stage: dict) -> dict[str, float]:
    """The weight of each loss of a training."""
    return {loss["name"]: loss["weight"] for loss in stage["losses"]}


def teacher_names(stage: dict) -> list[str]:
    return [teacher["model"]["name"] for teacher in stage["teachers"]]


def test_recipes_are_short_and_say_what_they_are():
    for recipe in ("tinybert_squad", "tinyroberta", "tinybert_german", "sead", "minilm", "tinybert_384"):
        source = (RECIPES / f"{recipe}.py").read_text()
        tree = ast.parse(source)
        assert len(source.splitlines()) <= 110
        assert all(
            word in ast.get_docstring(tree) for word in (f"python recipes/{recipe}.py", "Hardware: ", "--smoke")
        )
        modules = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert [module for module in modules if "tinybert" in module] == ["hf_tinybert"]


def test_tinybert_384(tmp_path, run):
    flags = ("--teacher", saved(tmp_path / "base"), "--text", texts(tmp_path), "--data", glue(tmp_path))
    run("tinybert_384.py", *flags, "--output_dir", "out", "--smoke")
    results = json.loads((tmp_path / "out/sst2/results.json").read_text())
    assert results["rows"] == 32
    assert set(results["student"]["validation"]) == {"accuracy", "score"}
    student = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out/sst2/student")
    assert (student.config.num_hidden_layers, student.config.hidden_size) == (2, 24)
    general, intermediate, prediction = stages(tmp_path / "out/sst2/student")
    layers = {"attention": 1.0, "hidden": 1.0, "embedding": 1.0}
    assert [weights(stage) for stage in (general, intermediate, prediction)] == [layers, layers, {"prediction": 1.0}]


@pytest.mark.parametrize(("version", "loss"), [(1, "minilm"), (2, "relation")])
def test_minilm(tmp_path, run, version, loss):
    flags = ("--teacher", saved(tmp_path / "base"), "--data", texts(tmp_path), "--version", version)
    run("minilm.py", *flags, "--output_dir", "out", "--smoke")
    (stage,) = stages(tmp_path / "out")
    assert weights(stage) == {loss: 1.0}
    assert json.loads((tmp_path / "out/trainer_state.json").read_text())["global_step"] == 2


def test_tinybert_squad_augments_only_the_intermediate_phase(tmp_path, run):
    flags = ("--teacher", saved(tmp_path / "base"), "--data", *squad(tmp_path), "--masked_lm")
    flags += (saved(tmp_path / "mlm", BertForMaskedLM), "--augment", 2, "--output_dir", "out")
    run("tinybert_squad.py", *flags, "--smoke")
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["student"]["validation"]) == {"exact_match", "f1", "score"}
    assert set(results["seconds"]) == {"fine_tuning", "intermediate", "prediction"}
    intermediate, prediction = stages(tmp_path / "out/student")
    assert intermediate["augmentation"]["copies"] == 2
    assert 16 < intermediate["data"]["rows"] == results["rows"]
    assert prediction["augmentation"] is None
    assert prediction["data"]["rows"] == 16
    AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out/student")


def test_tinybert_squad_from_a_general_student(tmp_path, run):
    tokenizer = word_tokenizer(tmp_path)
    teacher = saved(tmp_path / "teacher", BertForQuestionAnswering, tokenizer)
    (tmp_path / "data/squad").mkdir(parents=True)
    answers = {"text": ["very bright"], "answer_start": [13]}
    rows = [{"id": str(i), "question": WORDS[i % 10], "context": CONTEXT, "answers": answers} for i in range(20)]
    for split in ("train", "validation"):
        Dataset.from_list(rows).to_parquet(tmp_path / f"data/squad/{split}.parquet")
    flags = ("--version", "1.1", "--teacher", teacher, "--data", "data", "--output_dir", "out", "--rows", 8)
    student = saved(tmp_path / "general", BertModel, tokenizer, 2, 48)
    run("tinybert_squad.py", *flags, "--student", student, "--prediction_epochs", 1)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["rows"] == 8
    assert set(results["seconds"]) == {"intermediate", "prediction"}  # the teacher has a prediction head


def test_tinyroberta(tmp_path, run):
    tokenizer = RobertaTokenizer().train_new_from_iterator([*TEXTS, CONTEXT], 300)
    base = saved(tmp_path / "base", RobertaForMaskedLM, tokenizer)
    teacher = saved(tmp_path / "teacher", RobertaForQuestionAnswering, tokenizer, seed=1)
    large = saved(tmp_path / "large", RobertaForQuestionAnswering, tokenizer, 6, 128, 16, seed=2)
    flags = ("--base", base, "--teacher", teacher, "--large", large, "--text", texts(tmp_path), "--data")
    run("tinyroberta.py", *flags, *squad(tmp_path), "--output_dir", "out", "--smoke")
    results = json.loads((tmp_path / "out/squad_v2/results.json").read_text())
    assert set(results["seconds"]) == {"intermediate", "prediction"}
    general, intermediate, prediction = stages(tmp_path / "out/squad_v2/student")
    trainings = (general, intermediate, prediction)
    assert [teacher_names(stage) for stage in trainings] == [["./base"], ["./teacher"], ["./large"]]
    assert weights(prediction) == {"prediction": 0.75 * 1.5**2, "task": 0.25}
    assert [loss["settings"].get("temperature") for loss in prediction["losses"]] == [1.5, None]


def test_tinybert_german_keeps_the_embeddings_of_common_tokens(tmp_path, run):
    english = saved(tmp_path / "english", BertForMaskedLM, layers=2, width=48)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "film", "book", "schön", "##er", "play", "goodfilm"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    german = saved(tmp_path / "german", BertForMaskedLM, BertTokenizer(str(tmp_path / "vocab.txt")))
    flags = ("--teacher", german, "--student", english, "--data", texts(tmp_path), "--output_dir", "out")
    run("tinybert_german.py", *flags, "--smoke")
    start, before = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / name).get_input_embeddings().weight
        for name in ("out/start", "english")
    )
    assert len(start) == len(words)
    old = AutoTokenizer.from_pretrained(tmp_path / "english").get_vocab()
    common = [i for i, word in enumerate(words) if word in old]
    assert len(common) == 10
    torch.testing.assert_close(start[common], before[[old[words[i]] for i in common]], rtol=0, atol=0)
    student = AutoModelForMaskedLM.from_pretrained(tmp_path / "out/general")
    assert student.config.hidden_size == 48
    assert not torch.equal(student.get_input_embeddings().weight, start)
    (stage,) = stages(tmp_path / "out/general")
    assert set(weights(stage)) == {"attention", "hidden", "embedding", "prediction"}


def test_sead_of_two_teachers_with_other_head_counts(tmp_path, run):
    tokenizer = word_tokenizer(tmp_path)
    base, large = saved(tmp_path / "base", tokenizer=tokenizer), tmp_path / "large"
    large = saved(large, tokenizer=tokenizer, layers=6, width=128, heads=16, seed=1)
    student = saved(tmp_path / "xtreme", tokenizer=tokenizer, layers=2, width=32, heads=8, seed=2)
    flags = ("--teachers", base, large, "--teacher_weights", 2, 1, "--student", student, "--data", glue(tmp_path))
    run("sead.py", *flags, "--teacher_logits", "confidence", "--output_dir", "out", "--smoke")
    results = json.loads((tmp_path / "out/sst2/results.json").read_text())
    assert len(results["teachers"]) == 2
    intermediate, prediction = stages(tmp_path / "out/sst2/student")
    assert [teacher["weight"] for teacher in intermediate["teachers"]] == pytest.approx([2 / 3, 1 / 3])
    assert [teacher["weight"] for teacher in prediction["teachers"]] == pytest.approx([2 / 3, 1 / 3])
    assert set(weights(intermediate)) == {"relation", "hidden", "embedding"}
    assert set(weights(prediction)) == {"prediction", "task"}
