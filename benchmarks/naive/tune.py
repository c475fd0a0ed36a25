"""One epoch of full fine-tuning as it is usually written: a DataLoader that decodes and augments, float32, AdamW."""

import io
import math

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset):
    """Images of a Parquet file; each is decoded, resized, mirrored, turned, shifted and normalized on its own."""

    def __init__(self, path, limit, size):
        table = pq.read_table(path, columns=["image", "label"]).slice(0, limit)
        self.images = table["image"].combine_chunks().field("bytes").to_pylist()
        names = table["label"].to_pylist()
        classes = sorted(set(names))
        self.labels = [classes.index(name) for name in names]
        self.size = size

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image = Image.open(io.BytesIO(self.images[i])).convert("RGB").resize((self.size, self.size))
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        angle, right, down = ((torch.rand(3) * 2 - 1) * torch.tensor([10.0, 0.1 * self.size, 0.1 * self.size])).tolist()
        image = image.rotate(angle, translate=(right, down), resample=Image.Resampling.BILINEAR)
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(self.size, self.size, 3)
        return pixels.permute(2, 0, 1).float() / 127.5 - 1, self.labels[i]


def train_epoch(model, path, limit, size, width, classes, batch_size=64, lr=3e-4):
    """Train for one epoch of cross-entropy."""
    loader = DataLoader(Images(path, limit, size), batch_size=batch_size, shuffle=True, num_workers=0)
    net = nn.ModuleDict({"backbone": model, "head": nn.Linear(width, classes)})
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, math.ceil(limit / batch_size))
    for pixels, y in loader:
        logits = net["head"](net["backbone"](pixels).pooler_output.flatten(1))
        loss = nn.functional.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return net
