"""Table 1: GPU memory and CPU memory of machines for training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from castor_configs.cluster import load_cluster
from paper_figures.figure_data import Effort, FigureData, Row
from paper_figures.published import published_values
from paper_figures.table_picture import draw_table

FIGURE = "table1"
GPU, CPU, RATIO = "GPU memory", "CPU memory", "CPU over GPU"

# What the vendors' pages say, in GB: GPUs, memory of one, CPU memory. The first two come from
# configs/clusters.
_VENDORS = {
    "ND40rs_v2": (8, 32, 672),
    "ND96asr_v4": (8, 40, 900),
    "n1-8-v100": (8, 32, 624),
    "a2-highgpu-8g": (8, 40, 640),
    "DGX A100": (8, 80, 2000),
}
_SHIPPED = {"p3dn.24xlarge": "p3dn", "p4d.24xlarge": "p4d"}


def compute(effort: Effort) -> FigureData:
    """Return the memory of each machine, and how many times a GPU's state its CPU memory holds."""
    effort.progress(FIGURE)
    return FigureData(tuple(_rows()))


def _rows() -> Iterator[Row]:
    published = published_values(FIGURE)
    memory: dict[str, tuple[float, float]] = {}
    for point, name in _SHIPPED.items():
        cluster = load_cluster(name)
        gpu_gb = cluster.gpus_per_machine * cluster.gpu_memory / 1e9
        memory[point] = (gpu_gb, cluster.cpu_memory / 1e9)
    for point, (gpus, each_gb, memory_gb) in _VENDORS.items():
        memory[point] = (float(gpus * each_gb), float(memory_gb))
    for number, series in enumerate((GPU, CPU)):
        for point, sizes in memory.items():
            yield Row(FIGURE, series, point, sizes[number], "GB", published[series, point].value)
    for point, (gpu_gb, cpu_gb) in memory.items():
        paper = published[CPU, point].value / published[GPU, point].value
        yield Row(FIGURE, RATIO, point, cpu_gb / gpu_gb, "ratio", paper)


def draw(data: FigureData, path_stem: str | Path) -> None:
    """Draw the table; writes PNG and PDF."""
    columns = {GPU: "{:.0f} GB", CPU: "{:.0f} GB", RATIO: "{:.2f}"}
    draw_table(data, FIGURE, columns, path_stem, widths=(0.31, 0.23, 0.23, 0.23))
