"""Columns of every kind of task: what is missing or of another type is named by row and column."""

import datasets
import pytest
from conftest import word_tokenizer
from datasets import Dataset, DatasetDict

from hf_tinybert import MultipleChoice, QuestionAnswering, TextClassification, TokenClassification
from hf_tinybert.pipelines.text import tokenize_text

CLASSIFIED = {"text": ["a film", "dull", "a book"], "label": [0, 1, 0]}
TAGGED = {"tokens": [["a", "film"], ["dull"]], "ner_tags": [["O", "B-A"], ["O"]]}
CHOSEN = {"context": ["a", "the"], "choices": [["film", "book"], ["play", "film"]], "label": [0, 1]}
ASKED = {
    "id": ["0", "1"],
    "question": ["a film", "a book"],
    "context": ["the film", "the book"],
    "answers": [{"text": ["film"], "answer_start": [4]}, {"text": [], "answer_start": []}],
}


def make(kind, columns):
    data = DatasetDict(train=Dataset.from_dict(columns), validation=Dataset.from_dict(columns))
    if kind is QuestionAnswering:
        task = QuestionAnswering("task", max_length=16, stride=4)
        task.check(data)
        return task, data
    return kind.from_dataset(data, ("context",)) if kind is MultipleChoice else kind.from_dataset(data)


BASES = {
    TextClassification: CLASSIFIED,
    TokenClassification: TAGGED,
    MultipleChoice: CHOSEN,
    QuestionAnswering: ASKED,
}
GOOD = ASKED["answers"][0]
FAULTS = [
    (TextClassification, {"text": ["a", None, "b"]}, r"Row 1 of task/train: 'text' is missing \(None\)"),
    (TextClassification, {"text": [None] * 3}, "Row 0 of task/train: 'text' is missing"),
    (TextClassification, {"text": [1, 2, 3]}, "'text' of task/train is of type int64: each row needs a string"),
    (TextClassification, {"text": [{"a": "b"}] * 3}, "'text' of task/train is of type struct"),
    (TextClassification, {"text": [["a"]] * 3}, "'text' of task/train is of type list<item: string>"),
    (TextClassification, {"label": [0.5, None, 1.0]}, "Row 1 of task/train: 'label' is missing"),
    (TextClassification, {"label": [0.5, 1.0, float("nan")]}, "Row 2 of task/train: 'label' is nan"),
    (TextClassification, {"label": [0.5, float("-inf"), 1.0]}, "Row 1 of task/train: 'label' is -inf"),
    (TokenClassification, {"tokens": [["a", None], ["b"]]}, "Row 0 of task/train: 'tokens' holds None"),
    (TokenClassification, {"tokens": [["a", "b"], None]}, "Row 1 of task/train: 'tokens' is missing"),
    (TokenClassification, {"tokens": ["a b", "c"]}, "'tokens' of task/train is of type string.*list of strings"),
    (TokenClassification, {"tokens": [[1, 2], [3]]}, "'tokens' of task/train is of type list<item: int64>"),
    (TokenClassification, {"ner_tags": [["O", None], ["O"]]}, "Row 0 of split 'train': 'ner_tags' holds None"),
    (TokenClassification, {"ner_tags": [["O", "O"], None]}, "Row 1 of split 'train': 'ner_tags' is missing"),
    (TokenClassification, {"ner_tags": ["O O", "O"]}, "'ner_tags' of split 'train' is of type string"),
    (TokenClassification, {"tokens": [["a", "b"], []]}, "Row 1 of task/train has 0 words and 1 tags"),
    (MultipleChoice, {"context": ["a", None]}, "Row 1 of task/train: 'context' is missing"),
    (MultipleChoice, {"choices": [["a", None], ["b", "c"]]}, "Row 0 of task/train: 'choices' holds None"),
    (MultipleChoice, {"choices": [["a", "b"], None]}, "Row 1 of task/train: 'choices' is missing"),
    (MultipleChoice, {"choices": [[1, 2], [3, 4]]}, "'choices' of task/train is of type list<item: int64>"),
    (MultipleChoice, {"choices": ["a", "b"]}, "'choices' of task/train is of type string"),
    (MultipleChoice, {"label": [0.0, 1.0]}, "'label' of task/train is of type double.*number of the right ending"),
    (MultipleChoice, {"label": [0, None]}, "Row 1 of task/train: 'label' is missing"),
    (QuestionAnswering, {"question": ["a", None]}, "Row 1 of task/train: 'question' is missing"),
    (QuestionAnswering, {"context": [1, 2]}, "'context' of task/train is of type int64"),
    (QuestionAnswering, {"answers": [GOOD, None]}, "Row 1 of task/train: 'answers' is missing"),
    (QuestionAnswering, {"answers": ["film", "book"]}, "'answers' of task/train is of type string: each row needs {"),
    (QuestionAnswering, {"answers": [GOOD, {"text": None, "answer_start": None}]}, "Row 1 .*'answers' holds None"),
    (QuestionAnswering, {"answers": [GOOD, {"text": [None], "answer_start": [0]}]}, "Row 1 .*'answers' holds None"),
    (QuestionAnswering, {"answers": [GOOD, {"text": ["a"], "answer_start": []}]}, "Row 1 .*has 1 texts and 0 starts"),
    (
        QuestionAnswering,
        {"answers": [GOOD, {"text": ["book"], "answer_start": [3]}]},
        r"Row 1 .*'book' and answer_start 3, where the context has ' boo': .*\(it first begins at 4\)",
    ),
    (QuestionAnswering, {"answers": [GOOD, {"text": ["film"], "answer_start": [4]}]}, "Row 1 .*does not have it"),
]


@pytest.mark.parametrize(("kind", "changes", "says"), FAULTS)
def test_a_fault_is_named(kind, changes, says):
    with pytest.raises(ValueError, match=says):
        make(kind, {**BASES[kind], **changes})


@pytest.mark.parametrize("kind", BASES, ids=lambda kind: kind.__name__)
def test_texts_may_be_empty_and_of_any_arrow_type_of_strings(kind, tmp_path):
    base = BASES[kind]
    task, data = make(kind, base)
    assert len(task.tokenize(data["train"], word_tokenizer(tmp_path)))
    column = kind.__dataclass_fields__["text"].default if kind is QuestionAnswering else (task.text[0],)
    for name in column:
        empty = [[""] * len(value) if isinstance(value, list) else "" for value in base[name]]
        unanswered = [{"text": [], "answer_start": []}] * 2
        task, data = make(kind, {**base, name: empty, **({"answers": unanswered} if name == "context" else {})})
        assert len(task.tokenize(data["train"], word_tokenizer(tmp_path)))
    large = datasets.Value("large_string")
    train = data["train"].cast_column(task.text[0], datasets.LargeList(large) if task.text_levels else large)
    task.check(DatasetDict(train=train.select([1, 0])))


def test_faults_of_the_validation_split_are_named_too():
    train, validation = Dataset.from_dict(CLASSIFIED), Dataset.from_dict({**CLASSIFIED, "text": ["a", "b", None]})
    with pytest.raises(ValueError, match="Row 2 of task/validation: 'text' is missing"):
        TextClassification.from_dataset(DatasetDict(train=train, validation=validation))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (Dataset.from_dict(CLASSIFIED), "The data is Dataset: pass a DatasetDict"),
        ({"train": [{"text": "a", "label": 0}], "validation": []}, "Split 'train' is list"),
        ({name: Dataset.from_dict(CLASSIFIED).to_iterable_dataset() for name in ("train", "validation")}, "Iterable"),
    ],
)
def test_what_is_no_data_set_is_refused(data, says):
    with pytest.raises(TypeError, match=says):
        TextClassification.from_dataset(data)


@pytest.mark.parametrize("name", ["./nothing", "/nothing/here"])
def test_a_folder_that_does_not_exist(name):
    with pytest.raises(FileNotFoundError, match=f"Cannot load '{name}', neither a folder here nor from the Hub"):
        TextClassification("task", ("text",), ("no", "yes")).load(name)


@pytest.mark.parametrize("packed", [True, False])
def test_plain_text(tmp_path, packed):
    tokenizer = word_tokenizer(tmp_path)
    data = Dataset.from_dict({"text": ["a film", None]})
    with pytest.raises(ValueError, match="Row 1 of the data: 'text' is missing"):
        tokenize_text(data, tokenizer, packed=packed)
    with pytest.raises(ValueError, match="A row of the stream has None in 'text'"):
        list(tokenize_text(data.to_iterable_dataset(), tokenizer, packed=packed))
    with pytest.raises(ValueError, match="'text' of the data is of type int64"):
        tokenize_text(Dataset.from_dict({"text": [1]}), tokenizer, packed=packed)
