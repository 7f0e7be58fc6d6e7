"""Makes a study of what people see, of folders of pictures: the paper's fool rates.

sr3 study new --study=DIR --reference=FOLDER --outputs=NAME=FOLDER,NAME=FOLDER \
    [--task=1 --low_resolution=FOLDER] [--serve]
"""

from __future__ import annotations

from absl import flags
from etils import epath

from sr3_jax.commands import demo, shared, study_serve
from sr3_jax.data import storage

_NUMBERS = {
    "trials": "Pairs of each subject. 0: all pictures, 50 at most.",
    "practice": "Pairs before, whose answers are told.",
    "checks": "Plain pairs between the others, to see whether subjects look.",
    "most_failed_checks": "Who misses more of them is left out of results.",
    "break_every": "Pairs between rests. 0: none.",
    "invitations": "Number of addresses for one subject each. 0: the page is open to all.",
    "seed": "Seed of order, sides and assignment.",
}
_DEFAULTS = {"practice": 2, "checks": 4, "most_failed_checks": 1, "break_every": 25}


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags of making a study."""
    of = {"flag_values": values}
    flags.DEFINE_string("study", None, "Folder for the study.", **of)
    flags.DEFINE_string("reference", None, "Folder of the photographs.", **of)
    meaning = "NAME=FOLDER of each method, with pictures of the names of the photographs."
    flags.DEFINE_list("outputs", [], meaning, allow_overwrite=False, **of)
    meaning = "Folder of the inputs of the methods, which task 1 shows in the middle."
    flags.DEFINE_string("low_resolution", "", meaning, **of)
    meaning = "Task of the paper: 1, with the low resolution in the middle, or 2, without."
    flags.DEFINE_integer("task", 2, meaning, lower_bound=1, upper_bound=2, **of)
    meaning = "How long a pair is shown; 0: until it is answered."
    flags.DEFINE_float("seconds", 3.0, meaning, lower_bound=0.0, upper_bound=600.0, **of)
    meaning = "Pairs that are shown: each method against the photograph, or all."
    flags.DEFINE_enum("pairs", "reference", ("reference", "all"), meaning, **of)
    meaning = "Pixels of the screen for each pixel of a picture, a side."
    flags.DEFINE_integer("scale", 1, meaning, lower_bound=1, upper_bound=16, **of)
    for name, meaning in _NUMBERS.items():
        default = _DEFAULTS.get(name, 0)
        flags.DEFINE_integer(name, default, meaning, lower_bound=0, upper_bound=100_000, **of)
    flags.DEFINE_string("until", "", "Last day on which answers are taken, as 2026-12-31.", **of)
    flags.DEFINE_string("title", "Which picture?", "Heading of the page.", **of)
    meaning = "File with the text that subjects agree to. Default: what is kept, in four sentences."
    flags.DEFINE_string("consent", "", meaning, **of)
    meaning = "Serve the study at once, as `sr3 study serve`; one that is there goes on."
    flags.DEFINE_bool("serve", False, meaning, **of)
    shared.define_address(values, "the page", study_serve.PORT, has_password=False)


def prepare(values: flags.FlagValues) -> shared.Job:
    """Checks the flags."""
    demo.require_web("starlette", "uvicorn", "choix")
    shared.require(values, "study", "reference", "outputs")
    from sr3_jax.study import design

    outputs = shared.pairs("outputs", values.outputs)
    folders = {"reference": values.reference, "low_resolution": values.low_resolution}
    for name, folder in (*folders.items(), *(("outputs", folder) for folder in outputs.values())):
        if folder and not storage.is_folder(folder):
            raise FileNotFoundError(f"--{name}={folder} is no folder; give a folder of images")
    consent = ""
    if values.consent:
        if not storage.exists(values.consent):
            raise FileNotFoundError(f"--consent={values.consent} does not exist; give a text file")
        consent = storage.read(values.consent).decode().strip()
    same = ("task", "seconds", "pairs", "scale", "until", "title", *_NUMBERS)
    options = design.Options(consent=consent, **{name: values[name].value for name in same})

    def run() -> None:
        from sr3_jax.jobs import studying
        from sr3_jax.web import serving

        studying.make(
            epath.Path(values.study),
            values.reference,
            outputs,
            values.low_resolution,
            options,
            serving.Address(values.port, values.listen) if values.serve else None,
        )

    return shared.Job(run)
