"""What to ship, by device: runtime, file, time and accuracy. A lower precision must pass its parity
gate and be MIN_SPEEDUP times as quick as the best higher one."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.report.labels import BACKENDS
from export.parity import THRESHOLDS
from records.results import Results, Row
from records.timing import MIN_SPEEDUP

# from the highest precision to the lowest
RANKS = {"fp32": 0, "tf32": 0, "fp16": 1, "bf16": 1, "fp8": 2, "int8": 2}
RUNTIMES = {**BACKENDS, "ort-cpu": "onnxruntime", "ort-cuda": "onnxruntime CUDA",
            "ort-trt": "onnxruntime TensorRT", "onnxruntime-cpu": "onnxruntime",
            "tensorrt": "TensorRT", "compile": "torch.compile"}
SHOWN = 8  # candidates of a device that were not chosen


@dataclass(frozen=True)
class Candidate:
    """One way to run the student. cosine: to its FP32 features, [0,1], None if not measured. wrong:
    why it must not be shipped; "" if nothing is known against it."""
    runtime: str
    precision: str
    file: str
    ms: float             # a frame
    cosine: float | None
    cosine_p1: float | None
    energy_mj: float | None
    wrong: str

    def __str__(self) -> str:
        name = f"{self.precision.upper()} on {self.runtime}"
        return f"{name}, {self.file}" if self.file else name


@dataclass(frozen=True)
class Place:
    """What candidates must share to be compared."""
    device: str
    model: str
    batch: int
    threads: int | None

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.device}: {self.model}, batch {self.batch}{threads}"


def advise(files: Sequence[Results]) -> Iterator[str]:
    """The page, in lines. Raises ValueError if no file has the latency of a student."""
    places: dict[Place, list[Candidate]] = {}
    for results in files:
        for row in results.rows:
            if _times_a_student(row):
                place = _place(results, row)
                places.setdefault(place, []).append(_candidate(results, row))
    if not places:
        raise ValueError(f"advise: {', '.join(file.name for file in files)} has no latency of a "
                         "student; measure it with: vega3d bench latency RUN")
    for place, candidates in sorted(places.items(), key=lambda item: str(item[0])):
        yield str(place)
        yield from (f"  {line}" for line in _answer(candidates))
        yield ""


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The quickest that may be shipped, of the highest precision that is not slower."""
    chosen: Candidate | None = None
    for one in sorted(candidates, key=lambda each: (RANKS[each.precision], each.ms)):
        pays = chosen is None or (RANKS[one.precision] > RANKS[chosen.precision]
                                  and one.ms * MIN_SPEEDUP <= chosen.ms)
        if pays and not one.wrong:
            chosen = one
    return chosen


def _answer(candidates: Sequence[Candidate]) -> Iterator[str]:
    chosen = best(candidates)
    if chosen is None:
        yield "ship      nothing: none of these passed its parity gate"
    else:
        energy = f", {chosen.energy_mj:.1f} mJ" if chosen.energy_mj else ""
        yield f"ship      {chosen}: {chosen.ms:.2f} ms a frame{energy}"
        yield f"accuracy  {_accuracy(chosen)}"
        yield f"why       {_reason(chosen, candidates)}"
    others = sorted((one for one in candidates if one is not chosen), key=lambda one: one.ms)
    for one in others[:SHOWN]:
        timed = one.ms < float("inf")
        share = f" ({one.ms / chosen.ms:.2f}x the time)" if chosen and timed else ""
        facts = [f"{one.ms:.2f} ms{share}" if timed else "", one.wrong]
        yield f"not       {one}: {'; '.join(filter(None, facts))}"
    if len(others) > SHOWN:
        yield f"          and {len(others) - SHOWN} slower ones"


def _accuracy(one: Candidate) -> str:
    if one.cosine is not None:
        p1 = "" if one.cosine_p1 is None else f", 1st percentile {one.cosine_p1:.4f}"
        return f"cosine to FP32 {one.cosine:.4f}{p1}"
    if RANKS[one.precision] == 0:
        return "FP32, the reference"
    return ("not in these files; its export passed the parity gate, and vega3d bench measures it "
            "on held-out rooms")


def _reason(chosen: Candidate, candidates: Sequence[Candidate]) -> str:
    """chosen against the quickest of each other precision that may be shipped."""
    pays, loses, name = [], [], chosen.precision.upper()
    fit = [one for one in candidates if not one.wrong and one.precision != chosen.precision]
    for precision in sorted({one.precision for one in fit}, key=RANKS.__getitem__):
        rival = min((one for one in fit if one.precision == precision), key=lambda one: one.ms)
        its = f"({rival.runtime}, {rival.ms:.2f} ms)"
        if RANKS[precision] < RANKS[chosen.precision]:
            pays.append(f"{rival.ms / chosen.ms:.2f}x over the best {precision.upper()} here {its}")
        else:
            loses.append(f"{precision.upper()} does not pay: {chosen.ms / rival.ms:.2f}x of "
                         f"{name} {its}")
    if pays:
        loses.insert(0, f"{name} pays {' and '.join(pays)}")
    return "; ".join(loses) or f"nothing but {name} was measured here"


def _times_a_student(row: Row) -> bool:
    kind = row.get("kind") or row.get("part") or "latency"
    timed = row.get("latency_ms") or (row.get("gate") or "passed") != "passed"
    return (kind == "latency" and bool(timed) and row.get("stage", "student") == "student"
            and row.get("precision") in RANKS)


def _place(results: Results, row: Row) -> Place:
    env, runtime = results.env, _runtime(row)
    on_gpu = row.get("device") == "cuda" or (row.get("device") is None
                                             and row.get("threads") is None)
    named = row.get("device") if row.get("device") not in ("cpu", "cuda", None) else None
    machine = env.get("device") if env.get("l4t") else (
        on_gpu and env.get("gpu")) or env.get("cpu")
    device = str(named or machine or env.get("device") or "a device without a name")
    device += ", in a browser" if "web" in runtime else ""
    model = str(row.get("model") or _student(results))
    if model.lower().startswith("vit-"):  # a Jetson's file says vit-ti
        model = f"ViT-{model[4:].title()}"
    return Place(device, model, int(row.get("batch") or 1), row.get("threads"))


def _student(results: Results) -> str:
    return next((str(row["student"]) for row in results.of("run") if "student" in row), "student")


def _candidate(results: Results, row: Row) -> Candidate:
    precision = row["precision"]
    limits = THRESHOLDS[precision if precision in THRESHOLDS else "fp16"]
    scores = row
    if row.get("cosine_mean") is None:  # vega3d bench scores a file in a row of its own
        scores = next((each for each in results.of("accuracy")
                       if row.get("sha256") and each.get("sha256") == row["sha256"]), {})
    mean, p1 = (scores.get(f"cosine_{end}") if scores is row else scores.get(f"fp32_cosine_{end}")
                for end in ("mean", "p1"))
    wrong = "" if row.get("gate", "passed") == "passed" else f"failed its gate: {row['gate']}"
    for name, value, least in (("mean", mean, limits.cosine_mean), ("p1", p1, limits.cosine_p1)):
        if not wrong and value is not None and RANKS[precision] and value < least:
            wrong = f"cosine {name} {value:.4f} is below {least}"
    ms = row.get("frame_ms") or (row.get("latency_ms") or float("inf")) / (row.get("batch") or 1)
    launch = " (CUDA graph)" if row.get("launch") == "graph" else ""
    return Candidate(_runtime(row) + launch, precision,
                     str(row.get("artefact") or row.get("onnx") or row.get("file") or ""), ms, mean,
                     p1, row.get("energy_mj_per_frame"), wrong)


def _runtime(row: Row) -> str:
    name = str(row.get("runtime") or row.get("backend") or "TensorRT")
    return RUNTIMES.get(name, name)
