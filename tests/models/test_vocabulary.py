"""Trimmed and transferred vocabularies: tokens, outputs and files before and after."""

import copy
import itertools
import logging
from functools import cache
from pathlib import Path

import pytest
import torch
from conftest import build
from datasets import Dataset
from short_runs import distil
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AlbertForSequenceClassification,
    AlbertTokenizer,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertTokenizer,
    ByT5Tokenizer,
    CamembertTokenizer,
    DebertaV2Config,
    DebertaV2Model,
    DebertaV2Tokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ModernBertConfig,
    ModernBertForMaskedLM,
    ModernBertForSequenceClassification,
    MPNetConfig,
    MPNetForMaskedLM,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForTokenClassification,
    XLMRobertaTokenizer,
)

from hf_tinybert import create_student, transfer_vocabulary, trim_vocabulary
from hf_tinybert.models.vocabulary import check_same_tokens, own_tokenizer

ROOT = Path(__file__).parents[2]
LICENCE = (ROOT / "hf_tinybert/LICENSE").read_text("utf8").splitlines()  # a text that does not change
LINES = ["The DistillationTrainer’s `loss`: 3 × 312 → 84.1 ± 0.1 – **bold**", *filter(str.strip, LICENCE)]
CORPUS, OTHERS = LINES[: len(LINES) // 2], [*LINES[len(LINES) // 2 :], "Ein schönes Häuschen ☃ in der Stadt", "日本"]
SOME = CORPUS[::8]  # enough to compare outputs on
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 600,
    "initializer_range": 0.2,
}


def trained(model, trainer, pre_tokenizer, decoder=None, **options) -> PreTrainedTokenizerFast:
    """A tokenizer with special tokens after all others and added tokens, which truncates and pads."""
    backend = Tokenizer(model)
    backend.pre_tokenizer, backend.decoder, backend.normalizer = pre_tokenizer, decoder, normalizers.NFC()
    backend.train_from_iterator(LINES, trainer(vocab_size=600, show_progress=False, **options))
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    backend.add_tokens([AddedToken("DistillationTrainer"), AddedToken("never used")])
    ends = [(name, backend.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    template = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    template = template if decoder is None else processors.BertProcessing(ends[1], ends[0])
    backend.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), template])
    backend.enable_truncation(40)
    backend.enable_padding(pad_id=backend.token_to_id("[PAD]"), pad_token="[PAD]")
    names = ("unk", "cls", "sep", "pad", "mask")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{f"{n}_token": f"[{n.upper()}]" for n in names})


TOKENIZERS = {
    "WordPiece": lambda: BertTokenizer().train_new_from_iterator(LINES, 700),
    "byte-level BPE": lambda: RobertaTokenizer().train_new_from_iterator(LINES, 700),
    "Unigram": lambda: XLMRobertaTokenizer().train_new_from_iterator(LINES, 700),
    "lower-case Unigram": lambda: AlbertTokenizer().train_new_from_iterator(LINES, 700),
    "Unigram with a token of its own": lambda: CamembertTokenizer().train_new_from_iterator(LINES, 700),
    "Unigram, unk in the middle": lambda: DebertaV2Tokenizer().train_new_from_iterator(LINES, 700),
    "byte-level BPE, special tokens last": lambda: trained(
        models.BPE(), trainers.BpeTrainer, pre_tokenizers.ByteLevel(False), decoders.ByteLevel()
    ),
    "BPE with a prefix": lambda: trained(
        models.BPE(unk_token="e", continuing_subword_prefix="##"),
        trainers.BpeTrainer,
        pre_tokenizers.Whitespace(),
        decoders.WordPiece("##"),
        continuing_subword_prefix="##",
    ),
    "BPE with an end of words": lambda: trained(
        models.BPE(end_of_word_suffix="</w>"),
        trainers.BpeTrainer,
        pre_tokenizers.Whitespace(),
        decoders.BPEDecoder("</w>"),
        end_of_word_suffix="</w>",
    ),
    "words": lambda: trained(
        models.WordLevel(unk_token="the"), trainers.WordLevelTrainer, pre_tokenizers.Whitespace()
    ),
}
MODELS = {
    "WordPiece": (BertForSequenceClassification, BertConfig),
    "byte-level BPE": (RobertaForSequenceClassification, RobertaConfig),
    "lower-case Unigram": (AlbertForSequenceClassification, AlbertConfig),
    "Unigram, unk in the middle": (DebertaV2Model, DebertaV2Config),
    "byte-level BPE, special tokens last": (ModernBertForSequenceClassification, ModernBertConfig),
}


@cache
def _trained(kind: str):
    return TOKENIZERS[kind]()


def tokenizer_of(kind: str):
    """A copy: calling a tokenizer changes whether its backend truncates and pads."""
    return copy.deepcopy(_trained(kind))


def model_of(tokenizer, model_class, config_class, **changes):
    """Random weights, with rows to spare as published models have, and the tokenizer's special ids."""
    roles = ("pad", "bos", "eos", "cls", "sep")
    named = {f"{role}_token_id": tokenizer.special_tokens_map.get(f"{role}_token") for role in roles}
    ids = {name: token and tokenizer.convert_tokens_to_ids(token) for name, token in named.items()}
    config = config_class(**SIZES | ids | {"vocab_size": 6 + len(tokenizer)} | changes)
    return build(model_class, config).eval()


def special_ids(config) -> dict[str, int]:
    named = config.to_dict().items()
    return {name: index for name, index in named if name.endswith("_token_id") and index is not None}


def tokens(tokenizer, texts) -> list[list[str]]:
    return [tokenizer.convert_ids_to_tokens(ids) for ids in tokenizer(texts)["input_ids"]]


def outputs(model, tokenizer, texts) -> list[torch.Tensor]:
    with torch.no_grad():
        batches = (tokenizer([text], return_tensors="pt") for text in texts)
        return [model(**batch, output_hidden_states=True).hidden_states[-1] for batch in batches]


def reloaded(folder, model, tokenizer):
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return type(model).from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def numbered(tokens: str) -> dict[str, int]:
    return {token: index for index, token in enumerate(tokens.split())}


def any_model(tokenizer):
    return model_of(tokenizer, BertForSequenceClassification, BertConfig)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_trimmed_tokenizer_makes_the_same_tokens(kind, tmp_path):
    tokenizer = tokenizer_of(kind)
    before = tokenizer.backend_tokenizer.to_str()
    _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, CORPUS)
    assert tokenizer.backend_tokenizer.to_str() == before
    assert type(trimmed) is type(tokenizer)
    if tokenizer.backend_tokenizer.padding:
        assert trimmed.backend_tokenizer.padding["pad_id"] == trimmed.pad_token_id
    assert trimmed.special_tokens_map == tokenizer.special_tokens_map
    assert trimmed.name_or_path == tokenizer.name_or_path
    assert sorted(trimmed.get_vocab().values()) == list(range(len(trimmed)))
    assert len(trimmed) < len(tokenizer)
    remaining = sorted(trimmed.get_vocab(), key=trimmed.get_vocab().__getitem__)
    assert remaining == sorted(remaining, key=tokenizer.get_vocab().__getitem__)
    assert tokens(trimmed, CORPUS) == tokens(tokenizer, CORPUS)
    pairs = list(itertools.pairwise(CORPUS))
    assert tokens(trimmed, pairs) == tokens(tokenizer, pairs)
    trimmed.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.get_vocab() == trimmed.get_vocab()
    for texts in (CORPUS, OTHERS):
        assert again(texts, padding=True)["input_ids"] == trimmed(texts, padding=True)["input_ids"]


@pytest.mark.parametrize("kind", MODELS)
def test_a_trimmed_model_has_the_same_outputs(kind, tmp_path):
    tokenizer = tokenizer_of(kind)
    model = model_of(tokenizer, *MODELS[kind])
    width = model.get_input_embeddings().embedding_dim
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    trimmed, new_tokenizer = trim_vocabulary(model, tokenizer, CORPUS)
    assert trimmed.config.vocab_size == len(new_tokenizer) == trimmed.get_input_embeddings().num_embeddings
    assert trimmed.num_parameters() == model.num_parameters() - (6 + len(tokenizer) - len(new_tokenizer)) * width
    new_ids = special_ids(trimmed.config)
    for name, index in special_ids(model.config).items():
        assert new_tokenizer.convert_ids_to_tokens(new_ids[name]) == tokenizer.convert_ids_to_tokens(index)
    assert trimmed.get_input_embeddings().padding_idx == new_tokenizer.pad_token_id
    for again in ((trimmed, new_tokenizer), reloaded(tmp_path, trimmed, new_tokenizer)):
        for new, old in zip(outputs(*again, SOME), outputs(model, tokenizer, SOME), strict=True):
            assert torch.equal(new, old)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert model.config.vocab_size == 6 + len(tokenizer)


HEADS = {
    "BERT": (BertForMaskedLM, BertConfig, {}),
    "BERT untied": (BertForMaskedLM, BertConfig, {"tie_word_embeddings": False}),
    "RoBERTa": (RobertaForMaskedLM, RobertaConfig, {}),
    "DistilBERT": (DistilBertForMaskedLM, DistilBertConfig, {"dim": 16, "n_layers": 1, "n_heads": 2}),
    "ELECTRA": (ElectraForMaskedLM, ElectraConfig, {"embedding_size": 8}),
    "ALBERT": (AlbertForMaskedLM, AlbertConfig, {"embedding_size": 8}),
    "MPNet": (MPNetForMaskedLM, MPNetConfig, {}),
    "ModernBERT": (ModernBertForMaskedLM, ModernBertConfig, {"decoder_bias": False}),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_masked_language_model(head, tmp_path):
    tokenizer = tokenizer_of("WordPiece")
    *classes, changes = HEADS[head]
    model = model_of(tokenizer, *classes, **changes)
    if model.get_output_embeddings().bias is not None:
        torch.nn.init.normal_(model.get_output_embeddings().bias)
    trimmed, new_tokenizer = trim_vocabulary(model, tokenizer, CORPUS)
    old = tokenizer.convert_tokens_to_ids(new_tokenizer.convert_ids_to_tokens(range(len(new_tokenizer))))
    with torch.no_grad():
        want = model(**tokenizer(CORPUS[0], return_tensors="pt")).logits[..., old]
        inputs = new_tokenizer(CORPUS[0], return_tensors="pt")
        torch.testing.assert_close(trimmed(**inputs).logits, want)
        if head != "BERT untied":  # transformers 5.23 loses the bias of any such model's file
            torch.testing.assert_close(reloaded(tmp_path, trimmed, new_tokenizer)[0](**inputs).logits, want)
    tied = trimmed.get_output_embeddings().weight is trimmed.get_input_embeddings().weight
    assert tied == (head != "BERT untied")
    assert all(len(table) != model.config.vocab_size for table in trimmed.parameters())


@pytest.mark.parametrize("kind", [kind for kind in TOKENIZERS if kind != "words"])  # they have no smaller tokens
def test_words_that_the_trimmed_vocabulary_lacks_are_split(kind):
    """Into tokens of the old vocabulary that spell the same; unknown is only what has a character never seen."""
    tokenizer = tokenizer_of(kind)
    _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, CORPUS, min_count=3)
    assert set(trimmed.get_vocab()) <= set(tokenizer.get_vocab())
    seen = set("".join(CORPUS))
    words = {word for line in LINES for word in line.split() if set(word) <= seen}
    known = [word for word in words if tokenizer.unk_token_id not in tokenizer(word)["input_ids"]]
    assert len(known) > 500
    for word in known:
        ids = trimmed(word)["input_ids"]
        assert trimmed.unk_token_id not in ids
        assert trimmed.decode(ids) == tokenizer.decode(tokenizer(word)["input_ids"])


def test_bytes_spell_what_was_never_seen():
    singles = " ".join(f"<0x{byte:02X}>" for byte in range(256))
    backend = Tokenizer(models.BPE(numbered(f"[PAD] {singles} a b ab"), [("a", "b")], byte_fallback=True))
    fallback = PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]")
    for tokenizer in (fallback, tokenizer_of("byte-level BPE"), tokenizer_of("byte-level BPE, special tokens last")):
        _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, ["a"])
        assert len(trimmed) < len(tokenizer)
        texts = ["a日本", "☃", "\t\x7f"]
        assert trimmed.batch_decode(trimmed(texts)["input_ids"]) == tokenizer.batch_decode(
            tokenizer(texts)["input_ids"]
        )
    assert tokens(trim_vocabulary(any_model(fallback), fallback, ["a"])[1], ["☃"]) == [["<0xE2>", "<0x98>", "<0x83>"]]


def test_rare_tokens_are_removed():
    tokenizer, sizes = tokenizer_of("WordPiece"), []
    texts = ["the license and the work"] * 3 + ["a copyright of the license"]
    for min_count in (1, 3, 5):
        _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, texts, min_count)
        sizes.append({word for word in ("the", "license", "copyright", "work") if word in trimmed.get_vocab()})
    assert sizes == [{"the", "license", "copyright", "work"}, {"the", "license", "work"}, {"the"}]


def test_words_that_were_unknown_stay_unknown():
    """WordPiece reads "ab" first and fails on "c"; without "ab" it would find "a" and "##bc"."""
    tokenizer = BertTokenizer(vocab=numbered("[PAD] [UNK] [CLS] [SEP] [MASK] a ab ##b ##bc ##bcd b c d x"))
    texts = ["abc", "xbc", "a"]
    _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, texts)
    assert tokens(trimmed, texts) == tokens(tokenizer, texts)
    assert tokens(trimmed, ["abc"]) == [["[CLS]", "[UNK]", "[SEP]"]]


def test_the_cost_of_an_unknown_character_stays():
    """Unigram takes 10 off the lowest score: "☃" and "abc" cost 31, without "never" 26, and "☃a" and "bc" 30."""
    scores = {"▁": -1.0, "abc": -1.0, "☃a": -15.0, "bc": -15.0, "never": -20.0}
    special = dict.fromkeys(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], 0.0)
    tokenizer, texts = XLMRobertaTokenizer(vocab=[*(special | scores).items()]), ["☃abc", "abc"]
    _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, texts)
    assert tokens(trimmed, texts) == tokens(tokenizer, texts)
    assert tokens(trimmed, ["☃abc"]) == [["<s>", "▁", "☃a", "bc", "</s>"]]


def test_ids_of_the_model_stay_where_they_count():
    """RoBERTa's positions start after its padding id: nothing before it may go."""
    vocabulary = numbered("abc <s> </s> <pad> <unk> <mask> a b c ab ba")
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[("a", "b"), ("ab", "c"), ("b", "a")])
    model = model_of(tokenizer, RobertaForSequenceClassification, RobertaConfig)
    trimmed, new_tokenizer = trim_vocabulary(model, tokenizer, ["a"])
    assert vocabulary.keys() - new_tokenizer.get_vocab().keys() == {"ba"}
    assert trimmed.config.pad_token_id == 3
    for new, old in zip(outputs(trimmed, new_tokenizer, ["a"]), outputs(model, tokenizer, ["a"]), strict=True):
        assert torch.equal(new, old)


def test_batches_of_text_and_streams_count_alike():
    tokenizer, lines = tokenizer_of("WordPiece"), Dataset.from_dict({"text": CORPUS})
    model = any_model(tokenizer)
    expected = trim_vocabulary(model, tokenizer, CORPUS)[1].get_vocab()
    for texts in (lines["text"], (batch["text"] for batch in lines.iter(7)), [tuple(CORPUS)]):
        assert trim_vocabulary(model, tokenizer, texts)[1].get_vocab() == expected


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "one string"),
        ([], "empty"),
        ([{"text": "a"}], "holds a dict.*dataset"),
        ([["a", 1]], "holds a int"),
    ],
)
def test_what_is_no_corpus(texts, message):
    tokenizer = tokenizer_of("WordPiece")
    with pytest.raises(ValueError, match=message):
        trim_vocabulary(any_model(tokenizer), tokenizer, texts)


def test_a_tokenizer_of_another_model():
    tokenizer, other = tokenizer_of("WordPiece"), tokenizer_of("lower-case Unigram")
    model = model_of(tokenizer, BertForSequenceClassification, BertConfig, vocab_size=len(tokenizer) - 1)
    for change in (
        lambda: trim_vocabulary(model, tokenizer, CORPUS),
        lambda: transfer_vocabulary(model, tokenizer, other),
    ):
        with pytest.raises(ValueError, match="ids up to 699, the model 699 embeddings"):
            change()


def test_slow_tokenizers_are_refused():
    slow = ByT5Tokenizer()
    with pytest.raises(ValueError, match="ByT5Tokenizer is a slow tokenizer"):
        trim_vocabulary(any_model(tokenizer_of("WordPiece")), slow, CORPUS)


def test_a_student_learns_from_a_trimmed_teacher(tmp_path):
    tokenizer = tokenizer_of("WordPiece")
    teacher, new_tokenizer = trim_vocabulary(any_model(tokenizer), tokenizer, CORPUS)
    rows = Dataset.from_dict(dict(new_tokenizer(CORPUS[:16], truncation=True, max_length=32)))
    student = create_student(teacher, hidden_size=8, calibration_dataset=rows, processing_class=new_tokenizer)
    assert student.config.vocab_size == len(new_tokenizer)
    _, logs, _ = distil(
        tmp_path, student, teacher, train_dataset=rows, loss_type=["hidden", "embedding", "prediction"]
    )
    assert logs[0]["hidden_loss"] > 0


# ---- Transfer ----


@pytest.mark.parametrize("kind", ["WordPiece", "byte-level BPE", "lower-case Unigram"])
def test_transferred_to_the_same_tokenizer_nothing_changes(kind):
    tokenizer = tokenizer_of(kind)
    model = model_of(tokenizer, *MODELS[kind])
    transferred = transfer_vocabulary(model, tokenizer, tokenizer)
    for new, old in zip(outputs(transferred, tokenizer, SOME), outputs(model, tokenizer, SOME), strict=True):
        assert torch.equal(new, old)


def shuffled(tokenizer: BertTokenizer, cls: str) -> BertTokenizer:
    """The same tokens in another order, another name of [CLS], and two words that `tokenizer` lacks."""
    vocabulary = [token.replace("[CLS]", cls) for token in tokenizer.get_vocab()]
    order = torch.randperm(len(vocabulary), generator=torch.Generator().manual_seed(0)).tolist()
    vocabulary = [vocabulary[index] for index in order] + ["teacherstudent", "☃"]
    return BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}, cls_token=cls)


def test_the_same_tokens_retain_their_embeddings(tmp_path, caplog):
    tokenizer = tokenizer_of("WordPiece")
    new_tokenizer = shuffled(tokenizer, "[START]")
    model = model_of(tokenizer, BertForMaskedLM, BertConfig, bos_token_id=None)
    torch.nn.init.normal_(model.get_output_embeddings().bias)
    with caplog.at_level(logging.INFO, "hf_tinybert"):
        transferred = transfer_vocabulary(model, tokenizer, new_tokenizer)
    assert "Of 702 tokens 5 are special, 695 retain their embedding, 1 start from the mean of" in caplog.text
    assert (
        transferred.config.pad_token_id == new_tokenizer.pad_token_id == transferred.get_input_embeddings().padding_idx
    )
    assert transferred.config.vocab_size == 702
    lines = LINES[::8]
    for new, old in zip(outputs(transferred, new_tokenizer, lines), outputs(model, tokenizer, lines), strict=True):
        assert torch.equal(new, old)
    again, _ = reloaded(tmp_path, transferred, new_tokenizer)
    parts = torch.tensor(tokenizer("teacherstudent", add_special_tokens=False)["input_ids"])
    assert len(parts) > 1
    for table, old in zip(
        (again.get_input_embeddings().weight, again.get_output_embeddings().bias),
        (model.get_input_embeddings().weight, model.get_output_embeddings().bias),
        strict=True,
    ):
        torch.testing.assert_close(table[700], old[parts].mean(0))
        torch.testing.assert_close(table[701], old.mean(0))


def test_words_are_found_however_they_are_marked():
    wordpiece = BertTokenizer(vocab=numbered("[PAD] [UNK] [CLS] [SEP] [MASK] zu ##zu é"))
    bytewise = RobertaTokenizer(vocab=numbered("<s> <pad> </s> <unk> <mask> zu Ġzu ĠÃ© Ã"), merges=[])
    unigram = XLMRobertaTokenizer(vocab=[(p, 0.0) for p in numbered("<s> <pad> </s> <unk> <mask> ▁zu zu ▁é")])
    table = {
        wordpiece: {"pad": 0, "unk": 1, "cls": 2, "sep": 3, "mask": 4, "zu": 6, " zu": 5, " é": 7},
        bytewise: {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4, "zu": 5, " zu": 6, " é": 7},
        unigram: {"pad": 1, "unk": 3, "cls": 0, "sep": 2, "mask": 4, "zu": 6, " zu": 5, " é": 7},
    }
    for old, old_ids in table.items():
        model = any_model(old)
        for new, new_ids in table.items():
            rows = transfer_vocabulary(model, old, new).get_input_embeddings().weight
            for name, index in new_ids.items():
                assert torch.equal(rows[index], model.get_input_embeddings().weight[old_ids[name]]), name


def test_positions_that_count_from_padding_refuse_another():
    tokenizer, new_tokenizer = tokenizer_of("Unigram"), tokenizer_of("WordPiece")
    model = model_of(tokenizer, XLMRobertaForTokenClassification, XLMRobertaConfig)
    with pytest.raises(ValueError, match=r"padding id 1.*pads with 0.*give its padding token the id 1"):
        transfer_vocabulary(model, tokenizer, new_tokenizer)


def test_the_tokenizer_beside_a_model(tmp_path):
    """Without one AutoTokenizer makes up a BertTokenizer of five special tokens."""
    tokenizer = tokenizer_of("WordPiece")
    any_model(tokenizer).save_pretrained(tmp_path)
    assert own_tokenizer(tmp_path) is None
    tokenizer.save_pretrained(tmp_path)
    check_same_tokens(own_tokenizer(tmp_path), tokenizer)


def test_tokens_that_student_and_teacher_share():
    tokenizer = tokenizer_of("WordPiece")
    _, trimmed = trim_vocabulary(any_model(tokenizer), tokenizer, CORPUS)
    check_same_tokens(trimmed, trimmed)
    more = copy.deepcopy(trimmed)
    more.add_tokens(["only the teacher has it"])
    check_same_tokens(trimmed, more)
    with pytest.raises(
        ValueError, match=r"^1 of the student's .*'only the teacher has it'.*None.*transfer_vocabulary"
    ):
        check_same_tokens(more, trimmed)
    differing = sum(tokenizer.get_vocab()[token] != index for token, index in trimmed.get_vocab().items())
    with pytest.raises(ValueError, match=rf"^{differing} of the student's {len(trimmed)} tokens.*trim_vocabulary"):
        check_same_tokens(trimmed, tokenizer)
