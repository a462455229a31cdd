"""AMD's GPUs, as the kernel's amdgpu driver shows them under /sys. Best effort: what cannot be read is left out."""

from __future__ import annotations

from pathlib import Path

from fallow.model.node import Device

DRM = Path("/sys/class/drm")
VENDOR = "0x1002"


def amd_devices(drm: Path = DRM) -> tuple[Device, ...]:
    """Cards with memory of their own, in the kernel's order. Integrated graphics (less than 2 GiB) is left out."""
    found = []
    for card in sorted(drm.glob("card[0-9]*"), key=lambda path: (len(path.name), path.name)):
        folder = card / "device"
        if "-" in card.name or _text(folder / "vendor") != VENDOR:
            continue
        memory = _text(folder / "mem_info_vram_total")
        if not memory.isdigit() or int(memory) < 2 << 30:
            continue
        model = _text(folder / "product_name") or f"AMD GPU {_text(folder / 'device')}"
        serial = _text(folder / "unique_id")
        # ROCR_VISIBLE_DEVICES knows devices by 'GPU-' and this number, or by their place.
        found.append(
            Device(
                kind="gpu",
                model=model,
                memory_bytes=int(memory),
                uuid=f"GPU-{serial}" if serial else "",
                vendor="amd",
                driver=_text(Path("/sys/module/amdgpu/version")),
            )
        )
    return tuple(found)


def render_nodes(numbers: tuple[int, ...], drm: Path = DRM) -> tuple[str, ...]:
    """Device nodes of the cards at these places in `amd_devices`, with the one that all of ROCm needs."""
    cards = [
        card
        for card in sorted(drm.glob("card[0-9]*"), key=lambda path: (len(path.name), path.name))
        if "-" not in card.name
        and _text(card / "device" / "vendor") == VENDOR
        and int(_text(card / "device" / "mem_info_vram_total") or 0) >= 2 << 30
    ]
    nodes = []
    for number in numbers:
        if number < len(cards):
            nodes += [f"/dev/dri/{path.name}" for path in (cards[number] / "device" / "drm").glob("renderD*")]
    return ("/dev/kfd", *nodes) if nodes else ()


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
