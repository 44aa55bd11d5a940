"""How faithful heat maps are to the model that they explain."""

from .common import Result

STEPS = 8  # of a curve, from the whole image to none of it
BLUR = 1 / 8  # standard deviation, in shares of the image's side
GRID = 8  # as `fer_pll.inference.explanation`


def add_options(parser):
    parser.add_argument(
        "--checkpoint",
        metavar="PATH_OR_NAME",
        help="a classifier with label queries and the ViT encoder (default: fer-pll-tiny-vit-ferplus)",
    )
    parser.add_argument(
        "--data", default="data/ferplus", metavar="DIR", help="a prepared data set (default: %(default)s)"
    )
    parser.add_argument("--split", default="validation", help="the split to measure on (default: %(default)s)")
    parser.add_argument(
        "--rows", type=int, default=200, metavar="N", help="rows, spread over the split (default: %(default)s)"
    )


def measure(args):
    """Heat maps of `fer-pll predict --explain` (occlusion) against attention, Grad-CAM and random ones.

    Every map explains the class that the model finds. deletion: the strongest eighths of the map are blurred one after
    the other; insertion: they are shown one after the other on a blurred image. Both are the mean probability of the
    class along the way, so good maps have little of the first and much of the second; gap is insertion minus deletion,
    with the standard error of its mean. (No map is made by blurring: hidden parts get the mean color.)
    mouth or brows: share of the faces whose strongest cell has its center there, around landmarks found by RetinaFace;
    what random maps reach is chance. mouth, happy: the mouth alone, for faces that the model finds happy.

    attention: of the label query in the last block of the decoder; rollout: in all of its blocks, followed back
    through the encoder (Abnar and Zuidema, 2020); gradient rollout: the same, weighted by gradients (Chefer et al.,
    2021); Grad-CAM: of the encoder's tokens (Selvaraju et al., 2017); center: the middle first, whatever the image.

    ratios: the gaps. Target: that of occlusion is above all others'.
    """
    import numpy as np
    import torch
    from transformers import AutoModelForImageClassification

    from fer_pll.data.dataset import load_dataset
    from fer_pll.io.pretrained import load_image_processor, load_model
    from fer_pll.io.shipped import CHECKPOINTS, VIT_NAME

    torch.set_num_threads(args.threads)
    checkpoint = args.checkpoint or CHECKPOINTS[VIT_NAME]
    model = load_model(AutoModelForImageClassification, checkpoint, attn_implementation="eager").eval()
    image_processor = load_image_processor(checkpoint)
    dataset = load_dataset(args.data, args.split)
    if args.rows < len(dataset):
        dataset = dataset.select([i * len(dataset) // args.rows for i in range(args.rows)])
    images = dataset["image"][:]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    before = probabilities_of(model, pixel_values)
    found = before.argmax(dim=1)
    maps = maps_of_attention(model, pixel_values, found)
    maps["occlusion"] = occlusion(model, image_processor, images, found)
    maps["center"] = -torch.hypot(*torch.meshgrid(*[torch.arange(GRID) - (GRID - 1) / 2] * 2, indexing="ij"))
    maps["center"] = maps["center"].expand(len(images), -1, -1)
    maps["random"] = torch.rand(len(images), GRID, GRID, generator=torch.Generator().manual_seed(0))

    regions = [face_regions(image) for image in images]
    happy = torch.tensor([model.config.id2label[int(k)] == "happiness" for k in found])
    table = [("", "deletion", "insertion", "gap", "", "mouth or brows", "mouth, happy")]
    gaps = {}
    blurred = blur(pixel_values, BLUR * pixel_values.shape[-1])
    for name, each in sorted(maps.items(), key=lambda item: list(NAMES).index(item[0])):
        deletion, insertion = (curve(model, pixel_values, blurred, each, found, back) for back in (False, True))
        difference = (insertion - deletion).numpy()
        gaps[name] = float(difference.mean())
        hits = [points_to(each[i], *regions[i]) for i in range(len(images)) if regions[i]]
        smiles = [points_to(each[i], regions[i][0]) for i in range(len(images)) if regions[i] and happy[i]]
        table.append(
            (
                NAMES[name],
                f"{deletion.mean():.3f}",
                f"{insertion.mean():.3f}",
                f"{gaps[name]:+.3f}",
                f"± {difference.std() / len(difference) ** 0.5:.3f}",
                f"{np.mean(hits):.0%}" if hits else "",
                f"{np.mean(smiles):.0%}" if smiles else "",
            )
        )
    found_faces = sum(map(bool, regions))
    certainty = f"probability of the class found {before.amax(dim=1).mean():.3f}"
    print(f"{len(images)} images, {found_faces} with landmarks, {certainty}")
    others = max(gap for name, gap in gaps.items() if name != "occlusion")
    return Result(table, gaps, {"occlusion": others}, "attention, Grad-CAM")


NAMES = {
    "occlusion": "occlusion (ours)",
    "gradient_rollout": "gradient rollout",
    "rollout": "rollout",
    "attention": "attention",
    "grad_cam": "Grad-CAM",
    "center": "center",
    "random": "random",
}


def probabilities_of(model, pixel_values):
    import torch

    with torch.inference_mode():
        return torch.cat([model(part).logits.softmax(dim=1) for part in pixel_values.split(64)])


def occlusion(model, image_processor, images, found):
    """The maps of the package for the classes `found`, (N, GRID, GRID)."""
    import torch

    from fer_pll.inference.explanation import heat_maps

    def probabilities(crops):
        return probabilities_of(model, image_processor(crops, return_tensors="pt")["pixel_values"]).numpy()

    return torch.stack(
        [torch.from_numpy(heat_maps(probabilities, image)[k]) for image, k in zip(images, found.tolist(), strict=True)]
    )


def maps_of_attention(model, pixel_values, found):
    """Maps (N, GRID, GRID) that attention and gradients of the class found give."""
    import torch

    parts = [
        _maps_of_attention(model, part, k) for part, k in zip(pixel_values.split(32), found.split(32), strict=True)
    ]
    maps = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    side = int(maps["attention"].shape[1] ** 0.5)
    square = {name: each.unflatten(1, (side, side)) for name, each in maps.items()}
    return {
        name: torch.nn.functional.interpolate(each[:, None], size=(GRID, GRID), mode="area")[:, 0]
        for name, each in square.items()
    }


def _maps_of_attention(model, pixel_values, found):
    import torch

    tokens = []

    def keep(module, args, output):
        output.retain_grad()
        tokens.append(output)

    hook = model.fer_pll.layernorm.register_forward_hook(keep)
    outputs = model(pixel_values, output_attentions=True)
    hook.remove()
    for weights in (*outputs.attentions, *outputs.cross_attentions):
        weights.retain_grad()
    every = torch.arange(len(found))
    outputs.logits[every, found].sum().backward()
    model.zero_grad()
    # Of the query of the class: (N, heads, L) in each block of the decoder. In the encoder (N, heads, 1 + L, 1 + L).
    query = [
        (weights.detach()[every, :, found], weights.grad[every, :, found]) for weights in outputs.cross_attentions
    ]
    encoder = [(weights.detach(), weights.grad) for weights in outputs.attentions]
    identity = torch.eye(encoder[0][0].shape[-1])
    plain, weighted = identity, identity
    for weights, gradients in encoder:
        plain = (0.5 * weights.mean(dim=1) + 0.5 * identity) @ plain
        weighted = weighted + (weights * gradients).clamp(min=0).mean(dim=1) @ weighted
    attention = sum(weights.mean(dim=1) for weights, _ in query)
    weighted_attention = sum((weights * gradients).clamp(min=0).mean(dim=1) for weights, gradients in query)
    states, gradients = tokens[0].detach()[:, 1:], tokens[0].grad[:, 1:]
    return {
        "attention": query[-1][0].mean(dim=1),
        "rollout": (attention[:, None] @ plain[:, 1:, 1:])[:, 0],
        "gradient_rollout": (weighted_attention[:, None] @ weighted[:, 1:, 1:])[:, 0],
        "grad_cam": (gradients.mean(dim=1, keepdim=True) * states).sum(dim=2).clamp(min=0),
    }


def blur(pixel_values, deviation):
    """Gaussian blur of (N, C, H, W), reflected at the edges."""
    import torch

    reach = min(round(3 * deviation), pixel_values.shape[-1] - 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1.0) ** 2) / (2 * deviation**2))
    kernel = kernel / kernel.sum()
    channels = pixel_values.shape[1]
    padded = torch.nn.functional.pad(pixel_values, (reach,) * 4, mode="reflect")
    for shape in ((1, 1, 1, -1), (1, 1, -1, 1)):
        padded = torch.nn.functional.conv2d(padded, kernel.view(shape).expand(channels, 1, -1, -1), groups=channels)
    return padded


def curve(model, pixel_values, blurred, maps, found, insertion):
    """Mean probability (N,) of the classes `found` while the cells are blurred, or shown, from the strongest on."""
    import torch

    rank = maps.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).view(maps.shape)
    scores = []
    for step in range(STEPS + 1):
        first = (rank < step * GRID * GRID // STEPS)[:, None].float()
        first = torch.nn.functional.interpolate(first, size=pixel_values.shape[2:], mode="nearest").bool()
        mixed = torch.where(first == insertion, pixel_values, blurred)
        scores.append(probabilities_of(model, mixed)[torch.arange(len(found)), found])
    values = torch.stack(scores)
    return ((values[1:] + values[:-1]) / 2).mean(dim=0)


def face_regions(image):
    """Boxes (left, top, right, bottom), in shares of the side, of the mouth and of the brows; None without a face."""
    from PIL import Image

    from fer_pll.model.face_detection import find_faces, load_detector

    if not hasattr(face_regions, "detector"):
        face_regions.detector = load_detector("retinaface")
    side, corner = 192, 48  # detectors find no faces in images as small as FER+'s, nor such that fill the image
    canvas = Image.new("RGB", (side + 2 * corner,) * 2, (128, 128, 128))
    canvas.paste(image.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), (corner, corner))
    faces = find_faces(canvas, face_regions.detector)
    if not faces:
        return None
    (left, right, _, *corners) = ((faces[0].landmarks - corner) / side).tolist()
    eyes = right[0] - left[0]
    (x0, y0), (x1, y1) = corners
    mouth = (x0 - 0.15 * eyes, (y0 + y1) / 2 - 0.35 * eyes, x1 + 0.15 * eyes, (y0 + y1) / 2 + 0.35 * eyes)
    brows = (left[0] - 0.35 * eyes, min(left[1], right[1]) - 0.55 * eyes, right[0] + 0.35 * eyes)
    return mouth, (*brows, max(left[1], right[1]) - 0.1 * eyes)


def points_to(heat_map, *regions):
    """Whether the center of the strongest cell lies in one of the regions."""
    row, column = divmod(int(heat_map.argmax()), GRID)
    x, y = (column + 0.5) / GRID, (row + 0.5) / GRID
    return any(left <= x <= right and top <= y <= bottom for left, top, right, bottom in regions)
