"""What the `erase` command says of itself."""

from __future__ import annotations

# Typer keeps the line ends of a paragraph, so each paragraph is one line here.
HELP = "\n\n".join(
    (
        "Erase a concept from a diffusion model and keep the change as a small [bold]patch[/bold] file.",
        "A patch knows what it erases and from which weights. Apply it to the same model, take it off bit for bit, "
        "or bake it into a plain diffusers folder.",
        "With [cyan]--report[/cyan] the same prompts are drawn with the same noise before and after, and a judge "
        "counts what is in the pictures; open [cyan]index.html[/cyan] in the folder.",
    )
)

EXAMPLES = """[bold]Examples[/bold]

Erase stars from the embedded model, offline; then open report/index.html:

  [cyan]erase --concept star --model shapes --report report[/cyan]

The same with a model of your own, a folder, a .safetensors checkpoint or a Hub id:

  [cyan]erase --concept "van gogh" --model MODEL --out van-gogh.safetensors --report report[/cyan]

Try a prompt, before and after:

  [cyan]erase generate "a cafe by van gogh" --model MODEL --patch van-gogh.safetensors --out cafe.png[/cyan]

Write the erased model as a plain diffusers folder, which loads without this library, or the patch as a LoRA:

  [cyan]erase apply van-gogh.safetensors --model MODEL --save erased[/cyan]

  [cyan]erase export van-gogh.safetensors --model MODEL --form lora --out lora[/cyan]

Several concepts in one solve, each with what it becomes:

  [cyan]erase --concept star --anchor star=circle --concept red --anchor red=green --model shapes[/cyan]
"""
