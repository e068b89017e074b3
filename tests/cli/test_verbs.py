"""The command line as a user runs it: flags, a YAML file, exit codes, what is printed."""

import csv
import json
import sys

import onnxruntime
import pytest
import torch
from conftest import WORDS, bert_config, build, word_tokenizer
from datasets import ClassLabel, Dataset
from short_runs import launch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)

from hf_tinybert.cli import main, shipping, verbs
from hf_tinybert.cli.inputs import Options, held_out_note
from hf_tinybert.version import __version__

SIZE = ("--size", 2, 16, 32, 4)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to be in, with a teacher without and one with a head, and a data set of two splits."""
    monkeypatch.chdir(tmp_path)
    tokenizer = word_tokenizer(tmp_path)
    texts = [f"the {WORDS[i % 2]} {WORDS[2 + i % 3]} {WORDS[i % 10]}" for i in range(24)]
    rows = Dataset.from_dict({"review": texts, "stars": [i % 2 for i in range(24)]})
    rows = rows.cast_column("stars", ClassLabel(names=["bad", "good"]))
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / f"data/{split}.parquet")
    labels = {"id2label": {0: "bad", 1: "good"}, "label2id": {"bad": 0, "good": 1}}
    config = bert_config(4, 32, vocab_size=len(tokenizer), **labels)
    for name, model_class in (
        ("encoder", BertModel),
        ("teacher", BertForSequenceClassification),
        ("mlm", BertForMaskedLM),
    ):
        build(model_class, config).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    return tmp_path


DATA = ("--data", "data", "--text", "review", "--label", "stars")
QUICK = ("--num_train_epochs", 1, "--per_device_train_batch_size", 8, "--use_cpu", "--report_to", "none")


def run(verb, *flags) -> int:
    return main([verb, *map(str, flags)])


def test_distil_then_evaluate_report_and_export(folder, capsys):
    flags = (*DATA, *SIZE, *QUICK, "--calibration_rows", 8, "--seed", 3, "--embedding_size", 8, "--dropout", 0)
    flags += ("--teacher", "encoder", "--output_dir", "run", "--prediction", "learning_rate=3e-4", "augmented=false")
    assert run("distill", *flags, "--json") == 0
    results = json.loads(capsys.readouterr().out)
    settings = json.loads((folder / "run/settings.json").read_text())
    assert settings["phases"]["prediction"]["learning_rate"] == 3e-4
    assert (settings["augmentation"]["copies"], results["rows"]) == (10, settings["rows"]["train"][0])
    assert settings["phases"]["labels"]["seed"] == 3
    student = AutoModelForSequenceClassification.from_pretrained("run/student")
    assert (student.config.hidden_size, student.config.id2label) == (16, {0: "bad", 1: "good"})
    assert (student.config.embedding_size, student.config.hidden_dropout_prob) == (8, 0)

    assert run("evaluate", "run/student", *DATA, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"validation": pytest.approx(results["student"]["validation"])}

    models = ("--teacher", "run/teacher", "--student", "run/student")
    assert run("report", *DATA, *models, "--output_dir", "report", "--engines", "torch") == 0
    report = json.loads((folder / "report/report.json").read_text())
    assert report["measurements"][1]["metrics"]["accuracy"][0] == pytest.approx(
        results["student"]["validation"]["accuracy"]
    )
    assert {"latency.png", "similarity.png", "attention.png"} <= {path.name for path in (folder / "report").iterdir()}
    capsys.readouterr()

    export = (
        "export",
        "run/student",
        *DATA,
        "--output_dir",
        "onnx",
        "--formats",
        "int8",
        "safetensors_fp16",
        "--json",
    )
    assert run(*export, "--min_agreement", 1.1) == 1
    assert "on 24 rows of calibration_dataset: less than min_agreement=1.1" in capsys.readouterr().err
    assert not [*(folder / "onnx").rglob("*.onnx"), *(folder / "onnx").glob("*.json")]
    assert run(*export, "--min_agreement", 0.5) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [(folder / written["file"]).exists() for written in files] == [True] * 3
    onnxruntime.InferenceSession(folder / "onnx/onnx/model_quantized.onnx")
    half = AutoModelForSequenceClassification.from_pretrained("onnx/fp16")
    assert half.dtype == torch.float16


@pytest.fixture
def reviews(folder):
    """A CSV file with text labels beside a teacher whose labels are in another order; the rows and the file."""
    labels = {"id2label": {0: "good", 1: "bad"}, "label2id": {"good": 0, "bad": 1}}
    build(BertForSequenceClassification, bert_config(4, 32, vocab_size=20, **labels)).save_pretrained(
        folder / "teacher"
    )
    words = [word for word in WORDS if word.isalpha()]
    rows = [(f"the {words[i % 11]} {words[i % 7]} {words[i % 3]}", ("bad", "good")[i % 3 == 0]) for i in range(60)]
    with (folder / "reviews.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("review", "stars"), *rows])
    return rows


CSV = ("--data", "reviews.csv", "--text", "review", "--label", "stars")


def test_a_text_file_without_labels(reviews, folder, capsys):
    """The task is that of the teacher's prediction head."""
    (folder / "reviews.txt").write_text("\n".join(text for text, _ in reviews))
    flags = ("--transfer", "reviews.txt", "--teacher", "teacher", *SIZE, "--output_dir", "run", "--copies", 1)
    assert run("distill", *flags, *QUICK, "--transfer_rows", 40) == 0
    shown = capsys.readouterr()
    assert "40 transfer rows" in shown.err or "(removed: " in shown.err
    table = shown.out.splitlines()
    assert table[0].split() == ["parameters", "MB", "agreement", "kl", "score"]
    assert table[1].split()[-3:] == ["1.0000", "0.0000", "1.0000"]
    assert "scored by agreement with the teacher" in shown.out
    student = AutoModelForSequenceClassification.from_pretrained("run/student")
    assert student.config.id2label == {0: "good", 1: "bad"}
    doctor = ("doctor", "--transfer", "reviews.txt", "--teacher", "teacher", "--size", 1, 16, 32, 4, *QUICK)
    assert run(*doctor, "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"]
    assert run("distill", "--transfer", "none.txt", "--teacher", "teacher", "--output_dir", "run") == 1
    assert "no file or folder 'none.txt'" in capsys.readouterr().err


@pytest.mark.parametrize(("student", "labels"), [("encoder", ("bad", "good")), ("teacher", ("good", "bad"))])
def test_soft_labels_need_neither_labels_nor_a_teacher(reviews, folder, monkeypatch, capsys, student, labels):
    """Their names are the labels of a student without a prediction head."""
    soft = [{"text": text, "teacher_probabilities": {"bad": 0.25, "good": 0.75}} for text, _ in reviews]
    (folder / "soft.jsonl").write_text("\n".join(map(json.dumps, soft)))
    seen = []
    monkeypatch.setattr(verbs, "task_distillation", lambda *args, **options: seen.append((args, options)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("distill", "--transfer", "soft.jsonl", "--student", student, "--output_dir", "run")
    ((task, data, teachers, _), options) = seen[0]
    assert (task.labels, dict(data), teachers, options["student"]) == (labels, {}, [], student)
    assert len(options["transfer"]) == 60
    assert run("distill", "--transfer", "soft.jsonl", "--output_dir", "run") == 1
    assert "There is no data: pass --data" in capsys.readouterr().err


def test_what_a_file_is_scored_on_is_said(reviews):
    """Of a single file some rows are held out, of several splits none."""
    note = "Rows: those that distill holds out of reviews.csv (--validation train: all).\n"
    for data, validation, said in (("reviews.csv", None, note), ("reviews.csv", "train", ""), ("data", None, "")):
        assert held_out_note(Options(task=None, data=data, validation=validation)) == said


def test_labels_alone_beside_it(reviews, folder, capsys):
    (folder / "more.txt").write_text("the film is dull\n\nthe book is bright\n")
    flags = (*CSV, *SIZE, *QUICK, "--teacher", "teacher", "--output_dir", "run", "--augmentation", "none")
    assert run("distill", *flags, "--transfer", "more.txt", "--compare", "labels") == 0
    shown = capsys.readouterr()
    assert "2 transfer rows (removed: 1 blank)." in shown.err
    assert shown.out.splitlines()[4].startswith("student, labels alone")
    assert "32 training rows; baseline" in shown.out


def test_a_csv_file_with_text_labels(reviews, folder, capsys):
    """The teacher's own prediction head is used, in the order of its labels, and a part of the rows is held out."""
    flags = (*CSV, *SIZE, *QUICK, "--teacher", "teacher", "--output_dir", "run", "--init", "random")
    flags += ("--metric", "macro_f1", "--early_stopping_patience", 1, "--save_total_limit", 3)
    assert run("distill", *flags) == 0
    shown = capsys.readouterr()
    assert "30 of 60 training rows are held out (seed 0)" in shown.err
    assert "Fine-tuning" not in shown.err
    assert shown.err.count("Prediction phase: 100%") == 1
    table = shown.out.splitlines()
    assert table[0].split() == ["parameters", "MB", "accuracy", "macro_f1", "score"]
    assert [line[:20].rstrip() for line in table[1:4]] == ["teacher", "student, best epoch", "student, last epoch"]
    assert table[-1] == "Student: run/student (the whole run: run)"
    assert max(map(len, table)) <= 80
    student = AutoModelForSequenceClassification.from_pretrained("run/student")
    assert student.config.id2label == {0: "good", 1: "bad"}
    capsys.readouterr()

    assert run("evaluate", "teacher", *CSV, "--validation", "train", "--quiet", "--json") == 0
    printed = capsys.readouterr()
    assert not printed.err
    teacher = AutoModelForSequenceClassification.from_pretrained("teacher").eval()
    tokenizer = AutoTokenizer.from_pretrained("teacher")
    with torch.no_grad():
        logits = teacher(**tokenizer([text for text, _ in reviews], padding=True, return_tensors="pt")).logits
    right = [("good", "bad")[i] == stars for i, (_, stars) in zip(logits.argmax(-1), reviews, strict=True)]
    assert json.loads(printed.out)["train"]["accuracy"] == pytest.approx(sum(right) / 60)


def test_other_kinds_of_files(folder, capsys):
    rows = [{"words": ["the", WORDS[i % 5]], "tags": ["O", ("B-X", "O")[i % 2]]} for i in range(40)]
    (folder / "tags.jsonl").write_text("\n".join(map(json.dumps, rows)))
    labels = {"id2label": {0: "O", 1: "B-X"}, "label2id": {"O": 0, "B-X": 1}}
    build(BertForTokenClassification, bert_config(1, 16, vocab_size=20, **labels)).save_pretrained("tagger")
    word_tokenizer(folder).save_pretrained("tagger")
    flags = ("--data", "tags.jsonl", "--kind", "tokens", "--text", "words", "--label", "tags")
    assert run("evaluate", "tagger", *flags, "--metric", "accuracy", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["validation"]
    assert scores["score"] == scores["accuracy"]
    assert {"precision", "recall", "f1"} < {*scores}
    assert run("doctor", *flags, *SIZE, *QUICK, "--teacher", "tagger", "--size", 1, 16, 32, 4, "--json") == 0
    assert json.loads(capsys.readouterr().out)["passed"]


def test_report_of_a_question_answering_student(folder, capsys):
    tokenizer = word_tokenizer(folder)
    contexts = [f"the film is {WORDS[i % 5]} . a book was {WORDS[5 + i % 5]} ." for i in range(12)]
    answers = [{"text": ["a book"], "answer_start": [context.index("a book")]} for context in contexts]
    columns = {"id": [*map(str, range(12))], "question": ["the book"] * 12, "context": contexts, "answers": answers}
    for split in ("train", "validation"):
        Dataset.from_dict(columns).to_parquet(folder / f"squad/{split}.parquet")
    for name, size in (("qa_teacher", (4, 32)), ("qa_student", (2, 16))):
        config = bert_config(*size, vocab_size=len(tokenizer), id2label={0: "start", 1: "end"}, label2id=None)
        build(BertForQuestionAnswering, config).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    models = ("--task", "squad", "--data", ".", "--teacher", "qa_teacher", "--student", "qa_student")
    assert run("report", *models, "--output_dir", "report", "--engines", "torch") == 0
    report = json.loads((folder / "report/report.json").read_text())
    capsys.readouterr()
    assert run("evaluate", "qa_student", "--task", "squad", "--data", ".", "--json") == 0
    scores = json.loads(capsys.readouterr().out)["validation"]
    for name in ("exact_match", "f1"):
        assert report["measurements"][1]["metrics"][name][0] == pytest.approx(scores[name])


def test_a_yaml_file_says_the_same_as_flags(folder, monkeypatch):
    seen = []

    def record(*args, **options):
        seen.append((args[2:], options))
        raise ValueError("recorded")

    monkeypatch.setattr(verbs, "task_distillation", record)
    settings = """
        teacher: teacher
        data: data
        text: [review]
        label: stars
        size: [2, 16, 32, 4]
        output_dir: run
        bf16: true
        push_to_hub: false
        loss_type: [attention, hidden]
        intermediate: {num_train_epochs: 2, loss_type: [hidden]}
        seed: 1
        quiet: true
        json: false
    """
    (folder / "run.yaml").write_text("\n".join(line.strip() for line in settings.splitlines()))
    assert run("distill", "--config", "run.yaml", "--seed", 7) == 1
    flags = (*DATA, *SIZE, "--teacher", "teacher", "--output_dir", "run", "--bf16", "--push_to_hub", "false")
    flags += ("--seed", 7)
    flags += ("--loss_type", "attention", "hidden", "--intermediate", "num_train_epochs=2", "loss_type=[hidden]")
    assert run("distill", *flags) == 1
    assert seen[0] == seen[1]
    (positional, options) = seen[0]
    assert positional == (["teacher"], "run")
    assert options["student"] == {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
    }
    assert options["intermediate"] == {"num_train_epochs": 2, "loss_type": ["hidden"]}
    assert (options["bf16"], options["push_to_hub"], options["seed"]) == (True, False, 7)


@pytest.mark.parametrize("method", [("--masked_lm", "mlm"), ("--augmentation", "random_words")])
def test_augment(folder, capsys, method):
    assert run("augment", *DATA, *method, "--copies", 2, "--output", "more.parquet") == 0
    more = Dataset.from_parquet("more.parquet")
    assert f"24 rows became {len(more)}" in capsys.readouterr().out
    assert len(more) > 24
    assert set(more.column_names) == {"review", "label"}


def test_doctor(folder, capsys):
    flags = (*DATA, *QUICK, "--teacher", "teacher")
    assert run("doctor", *flags, *SIZE) == 0
    healthy = capsys.readouterr().out
    assert "FAIL" not in healthy
    assert "dry steps" in healthy
    assert sorted(path.name for path in folder.iterdir()) == ["data", "encoder", "mlm", "teacher", "vocab.txt"]
    assert run("doctor", *flags, "--size", 2, 16, 32, 2) == 0  # the default has no attention loss
    capsys.readouterr()
    assert run("doctor", *flags, "--size", 2, 16, 32, 2, "--loss_type", "attention") == 1
    assert "FAIL  attention heads" in capsys.readouterr().out
    assert run("doctor", *flags[2:], *SIZE, "--data", "data", "--text", "reviews") == 1
    assert "reviews" in capsys.readouterr().out
    assert run("doctor", *DATA) == 1
    assert "There is no teacher: pass --teacher" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("evaluate", "teacher"), "--task"),
        (("evaluate", "encoder", *DATA), "no trained prediction head"),
        (("evaluate", "teacher", "--data", "data", "--text", "title", "--label", "stars"), "title"),
        (("evaluate", "teacher", *DATA, "--validation", "dev"), "dev"),
        (("distill", *DATA, "--teacher", "teacher", "--output_dir", "run", "--prediction", "epochs"), "KEY=VALUE"),
        (
            ("distill", *DATA, "--teacher", "teacher", "--output_dir", "run", "--prediction", "learning_rat=3"),
            "learning_rat",
        ),
        (
            ("distill", *DATA, "--teacher", "teacher", "--output_dir", "run", "--labels", "num_train_epochs=many"),
            "argument --num_train_epochs",
        ),
        (
            ("distill", *DATA, "--teacher", "teacher", "--output_dir", "run", "--fine_tuning", "augmented=false"),
            "DistillationArguments has no 'augmented'",
        ),
        (("distill", "--config", "missing.yaml"), "missing.yaml"),
        (("push", "data", "--to", "user/x"), "config.json"),
        (("evaluate", "teacher", *DATA, "--metric", "pearson"), "choose of accuracy, f1, macro_f1"),
        (("evaluate", "teacher", "--data", "reviews.csv"), "no file or folder 'reviews.csv'"),
        (("evaluate", "teacher", "--data", "data"), "only ['review', 'stars']"),
        (("evaluate", "teacher", "--data", "data", "--text", "review", "--label", "review"), "named twice"),
        (("distill", *DATA, "--teacher", "/nowhere/teacher", "--output_dir", "run"), "/nowhere/teacher"),
    ],
)
def test_errors_are_one_line_and_exit_code_1(folder, capsys, flags, says):
    assert run(*flags) == 1
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("hf-tinybert ")
    assert says in line
    assert not printed.out


def test_unknown_flags_exit_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        run("evaluate", "x", "--taks", "sst2")
    assert ended.value.code == 2


def test_without_a_verb_it_shows_its_help(capsys):
    assert main([]) == 0
    assert "hf-tinybert distill --task sst2" in capsys.readouterr().out


def test_version(capsys):
    with pytest.raises(SystemExit) as ended:
        run("--version")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"hf_tinybert {__version__}\n"


@pytest.mark.parametrize("verb", ["distill", "augment", "evaluate", "report", "ship", "export", "push", "doctor"])
def test_help_teaches(capsys, verb):
    with pytest.raises(SystemExit) as ended:
        run(verb, "--help")
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert (getattr(verbs, verb, None) or getattr(shipping, verb)).__doc__.split()[0] in printed
    assert "--config" in printed
    assert ("--calibration_rows" in printed) == ("--padding_free" in printed) == (verb in ("distill", "doctor"))
    assert "--adam_beta1" not in printed  # one of Trainer's hundred


def test_push_and_pull(hub, folder, capsys):
    assert run("push", "teacher", "--to", "user/films", "--private") == 0
    assert "user/films" in capsys.readouterr().out
    assert hub.model("user/films").private
    pulled = AutoModelForSequenceClassification.from_pretrained("user/films")
    local = AutoModelForSequenceClassification.from_pretrained("teacher")
    assert all(map(torch.equal, pulled.state_dict().values(), local.state_dict().values()))


@pytest.mark.slow
def test_several_processes(folder):
    """As `accelerate launch -m hf_tinybert.cli` starts them; 2 processes are 1."""
    flags = (*DATA, *SIZE, "--init", "random", "--max_steps", 4, "--use_cpu", "--report_to", "none", "--seed", 1)
    flags += ("--teacher", "teacher", "--train_sampling_strategy", "sequential")
    flags += ("--optim", "sgd", "--learning_rate", 0.1)  # AdamW makes steps of the rounding of gradients that are zero
    script = folder / "distill.py"
    script.write_text("import sys\nfrom hf_tinybert.cli import main\nsys.exit(main(['distill', *sys.argv[1:]]))\n")
    for processes, batch in ((1, 8), (2, 4)):
        more = ("--output_dir", f"run{processes}", "--per_device_train_batch_size", batch)
        launch(script, processes, *flags, *more, folder=folder)
    one, two = (AutoModelForSequenceClassification.from_pretrained(f"run{n}/student").state_dict() for n in (1, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-5)


def test_module_and_script_are_the_same(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["hf-tinybert", "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "hf-tinybert distill --task sst2" in capsys.readouterr().out
