"""Put trained networks into the published folder layout, and take them out of it for further training.

    python -m training.assemble --runs runs --out assets/mini --encoders training/encoders
    python -m training.assemble --runs runs --take-apart assets/mini training/encoders

The encoders of both autoencoders are of use to further training only, so they lie apart from what users download.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from safetensors.torch import load_file, save_file

from training.settings import sizes
from trellis.pipelines.quantisation import dequantise, quantise

# key in pipeline.json: (file stem, class, run, network, settings key)
PARTS = {
    "sparse_structure_decoder": ("ss_dec", "SparseStructureDecoder", "structure_flow", "decoder", "ss_decoder"),
    "sparse_structure_flow_model": ("ss_flow", "SparseStructureFlowModel", "structure_flow", "flow", "ss_flow"),
    "sparse_structure_vggt_cond": ("ss_vggt_cond", "ModulatedMultiViewCond", "structure_flow", "cond", "ss_cond"),
    "slat_decoder_gs": ("slat_dec_gs", "SLatGaussianDecoder", "latent_flow", "gs", "slat_decoder_gs"),
    "slat_decoder_mesh": ("slat_dec_mesh", "SLatMeshDecoder", "latent_flow", "mesh", "slat_decoder_mesh"),
    "slat_flow_model": ("slat_flow", "SLatFlowModel", "latent_flow", "flow", "slat_flow"),
    "slat_vggt_cond": ("slat_vggt_cond", "ModulatedSLATMultiViewCond", "latent_flow", "cond", "slat_cond"),
}
EXTRA = {
    "vggt_model": ("vggt", "VGGT", "vggt", "vggt", "vggt"),
    "image_cond_model": ("dinov2", "DinoVisionTransformer", "image_encoder", "dinov2", "dinov2"),
}
ENCODERS = {("structure_vae", "encoder"): "ss_enc", ("latent_vae", "encoder"): "slat_enc"}  # run, network: file stem
# Run, network: file stem in a checkpoint's folder of weights. Decoders begin with their autoencoders.
STEMS = ENCODERS | {
    ("structure_vae", "decoder"): "ss_dec",
    ("latent_vae", "gs"): "slat_dec_gs",
    ("latent_vae", "mesh"): "slat_dec_mesh",
}
STEMS |= {(run, network): stem for stem, _, run, network, _ in {**PARTS, **EXTRA}.values()}
BEFORE = {"structure_flow": "vggt", "latent_flow": "latent_vae"}  # run: the one that trains some of its networks first
# The structure's flow is trained to say in its first step, without guidance, what the views allow, and to go on from
# there (training/LOG.md, runs 5 and 6).
STRUCTURE_PARAMS = {
    "steps": 2, "cfg_strength": 1.0, "cfg_interval": [0.5, 1.0], "rescale_t": 1.0, "guidance_rescale": 0.0,
}
LATENT_PARAMS = {
    "steps": 2, "cfg_strength": 1.0, "cfg_interval": [0.5, 1.0], "rescale_t": 1.0, "guidance_rescale": 0.0,
}


# Opacities are trained to be the chance that something fills the voxel. What is shipped decides: opaque above this
# chance, clear below it, for a surface that one sees through is none.
FILLED, STEEPNESS = 0.2, 8.0


def decided(representation: dict) -> dict:
    """The configuration of a Gaussian decoder whose opacities fall steeply from 1 to 0 about the chance `FILLED`."""

    def logit(share: float) -> float:
        return math.log(share / (1 - share))

    bias = STEEPNESS * (logit(representation["opacity_bias"]) - logit(FILLED))
    lr = representation["lr"] | {"_opacity": STEEPNESS * representation["lr"]["_opacity"]}
    return representation | {"lr": lr, "opacity_bias": 1 / (1 + math.exp(-bias))}


def weights_file(runs: Path, run: str, network: str) -> Path:
    """Where `runs` has the latest weights of a run's network."""
    file = runs / run / f"{network}.safetensors"
    return file if file.exists() or run not in BEFORE else runs / BEFORE[run] / file.name


def assemble(runs: Path, out: Path, tiny: bool = False) -> None:
    """Write the averaged weights of `runs`, in 8 bits, to `out/ckpts`, and the configuration files beside them."""
    networks = sizes(tiny).networks
    (out / "ckpts").mkdir(parents=True, exist_ok=True)
    stems = {}
    for key, (stem, name, run, network, settings) in {**PARTS, **EXTRA}.items():
        arguments = networks[settings]
        if key == "slat_decoder_gs":
            arguments = arguments | {"representation_config": decided(arguments["representation_config"])}
        config = {"name": name, "args": arguments}
        (out / "ckpts" / f"{stem}.json").write_text(json.dumps(config, indent=2) + "\n")
        save_file(quantise(load_file(weights_file(runs, run, network))), out / "ckpts" / f"{stem}.safetensors")
        stems[key] = f"ckpts/{stem}"

    def sampler(params: dict) -> dict:
        return {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}, "params": params}

    pipeline = {
        "name": "TrellisVGGTTo3DPipeline",
        "licence": "Apache-2.0",
        "args": {
            "models": {key: stems[key] for key in PARTS},
            "sparse_structure_sampler": sampler(STRUCTURE_PARAMS),
            "slat_sampler": sampler(LATENT_PARAMS),
            "slat_normalization": json.loads((runs / "latent_vae" / "normalization.json").read_text()),
            **{key: stems[key] for key in EXTRA},
            "image_resolution": sizes(tiny).image_size,
            "camera_frame": "object",
            "camera_readings": 8,
            "structure_thresholds": [-0.6, -0.2, -1.0, -1.4],
        },
    }
    (out / "pipeline.json").write_text(json.dumps(pipeline, indent=2) + "\n")


def keep_encoders(runs: Path, out: Path) -> None:
    """Write the encoders of `runs`, in 8 bits, to `out`, which `--init` of the training scripts takes."""
    (out / "ckpts").mkdir(parents=True, exist_ok=True)
    for (run, network), stem in ENCODERS.items():
        save_file(quantise(load_file(runs / run / f"{network}.safetensors")), out / "ckpts" / f"{stem}.safetensors")


def take_apart(folders: list[Path], runs: Path) -> None:
    """Write to `runs` what the scripts read of each other, from the first of `folders` that has it: all but the
    latent's flow, which starts from an assembled checkpoint with `--init`. The structure's networks lie with VGGT's,
    whose script trains them along."""
    for (run, network), stem in STEMS.items():
        run = "vggt" if run == "structure_flow" else run
        if run != "latent_flow":
            paths = [folder / "ckpts" / f"{stem}.safetensors" for folder in folders]
            weights = dequantise(load_file(next(path for path in paths if path.exists())))
            (runs / run).mkdir(parents=True, exist_ok=True)
            save_file(weights, runs / run / f"{network}.safetensors")
    (runs / "latent_vae" / "normalization.json").write_text(json.dumps(assembled_statistics(folders), indent=1))


def assembled_statistics(folders: list[Path]) -> dict[str, list[float]]:
    """Mean and deviation of each latent channel, as the first of `folders` that is a whole checkpoint states them."""
    pipeline = next(file for folder in folders if (file := folder / "pipeline.json").exists())
    return json.loads(pipeline.read_text())["args"]["slat_normalization"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path)
    what.add_argument("--take-apart", type=Path, nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--encoders", type=Path, help="with --out: also write the encoders, to this folder")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    if args.take_apart:
        take_apart(args.take_apart, args.runs)
        return
    assemble(args.runs, args.out, args.tiny)
    if args.encoders:
        keep_encoders(args.runs, args.encoders)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
