"""Features of a frozen network as most scripts make them: a DataLoader, float32, torch.no_grad."""

import io

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Images of a Parquet file, decoded and resized one by one."""

    def __init__(self, path, limit, processor):
        table = pq.read_table(path, columns=["image"]).slice(0, limit)
        self.images = table["image"].combine_chunks().field("bytes").to_pylist()
        self.processor = processor

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = Image.open(io.BytesIO(self.images[i])).convert("RGB")
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


@torch.no_grad()
def extract(model, processor, path, limit, batch_size=64):
    """Return the features of the first `limit` images of a Parquet file: the model's pooled output."""
    model.eval()
    loader = DataLoader(Images(path, limit, processor), batch_size=batch_size, num_workers=0)
    return torch.cat([model(pixels).pooler_output.flatten(1) for pixels in loader])
