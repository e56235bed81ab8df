"""What tests of several processes share: what `accelerate launch` makes of recipes/accelerate."""

from pathlib import Path

from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

FILES = sorted((Path(__file__).parents[1] / "recipes" / "accelerate").glob("*.yaml"))


def launch(file):
    """Return what `accelerate launch` makes of a file: arguments, environment of processes."""
    parser = launch_command_parser()
    words = ["--config_file", str(file), "recipes/finetune.py"]
    args, defaults, _ = _validate_launch_command(parser.parse_args(words))
    if args.use_deepspeed:
        args.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
        return args, prepare_deepspeed_cmd_env(args)[1]
    if args.multi_gpu or args.use_fsdp:
        return args, prepare_multi_gpu_env(args)
    return args, prepare_simple_launcher_cmd_env(args)[1]


def fsdp2_environment():
    """Return what FSDP2's file puts into the environment of every process."""
    _, environment = launch(next(file for file in FILES if file.stem == "fsdp2"))
    return {name: value for name, value in environment.items() if "FSDP" in name}
