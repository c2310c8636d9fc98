"""The contract of a sample: every break is found and named, and nothing missing passes for data in a batch."""
import pytest, torch
from hypothesis import given, settings, strategies as st
from hclab.core.sample import FIELDS, SampleError, collate, describe, validate

H, W, J = 24, 32, 16
FAST = settings(max_examples=40, deadline=None)


def full(persons=2, frames=4, bodies=1, seed=0, drop=()):
    "A valid sample with every key of the contract, less `drop`."
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g)
    ints = lambda top, *shape: torch.randint(0, top, shape, generator=g)
    boxes = torch.cat([rand(persons, 2) * 8, 10 + rand(persons, 2) * 10], 1)
    sample = dict(
        image=rand(3, H, W), depth=rand(1, H, W) * 5, instance_ids=ints(persons + 1, H, W), body_parts=ints(25, H, W), garments=ints(20, H, W),
        iuv=torch.cat([ints(25, 1, H, W).float(), rand(2, H, W)]), joints2d=rand(persons, J, 2) * 20 + 2, joints3d=rand(persons, J, 3) + 2,
        visibility=ints(3, persons, J).to(torch.int8), boxes=boxes, visible_boxes=boxes.clone(), hidden=rand(persons),
        camera=dict(K=torch.tensor([[30., 0., 16.], [0., 30., 12.], [0., 0., 1.]]), R=torch.eye(3), t=torch.zeros(3), distortion=torch.zeros(5)),
        sequence=rand(bodies, frames, J, 3), body_mask=ints(2, bodies, frames).bool(), frame="world", fps=50.0, action=3, segments=[(0, frames, 1)],
        identity=4, outfit=2, camera_id=1, attributes=ints(2, 5).float(), attribute_mask=torch.ones(5, dtype=torch.bool), caption="a person", skeleton="H36M16",
        image_size=(H, W), source="test", index=seed)
    return {k: v for k, v in sample.items() if k not in drop}


def broken(key, value):
    with pytest.raises(SampleError) as caught: validate(full() | {key: value})
    return caught.value


def test_every_key_is_covered_here():
    assert set(full()) == set(FIELDS)
    assert validate(full()).keys() == FIELDS.keys()


@FAST
@given(st.integers(0, 4), st.integers(1, 7), st.integers(1, 3), st.integers(0, 99), st.sets(st.sampled_from(["image", "depth", "iuv", "boxes", "camera", "caption", "action", "segments"])))
def test_valid_samples_pass_unchanged(persons, frames, bodies, seed, drop):
    sample = full(persons, frames, bodies, seed, drop)
    kept = dict(sample)
    assert validate(sample) is sample and sample.keys() == kept.keys()
    assert all(sample[k] is kept[k] for k in kept)
    assert len(describe(sample).rows) == len(sample) and "<table>" in describe(sample)._repr_html_()


TENSORS = [k for k, f in FIELDS.items() if f.shape]


@pytest.mark.parametrize("key", TENSORS)
def test_wrong_dtype_shape_or_type_names_the_key(key):
    value = full()[key]
    assert broken(key, value.double()).key == key
    assert broken(key, value[None]).key == key
    assert broken(key, value.numpy()).key == key
    assert broken(key, None).key == key


@pytest.mark.parametrize("key", [k for k in TENSORS if FIELDS[k].dtype == "float32"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_labels_are_found(key, value):
    sample = full()
    sample["visibility"][:], sample["body_mask"][:] = 2, True
    sample[key].view(-1)[-1] = value
    with pytest.raises(SampleError) as caught: validate(sample)
    assert caught.value.key == key and "finite" in str(caught.value)


@pytest.mark.parametrize("key, value, hint", [
    ("image", torch.rand(3, H, W) * 255, "255"), ("image", torch.zeros(3, H, W, dtype=torch.uint8), "/ 255"),
    ("depth", torch.full((1, H, W), 2100.), "1000"), ("depth", torch.full((1, H, W), -1.), "0 to 100"), ("joints3d", torch.full((2, J, 3), 900.), "1000"),
    ("body_parts", torch.full((H, W), 25), "0 to 24"), ("garments", torch.full((H, W), 20), "0 to 19"), ("instance_ids", torch.full((H, W), 3), "at most 2"),
    ("visibility", torch.full((2, J), 3, dtype=torch.int8), "0 to 2"), ("iuv", torch.full((3, H, W), 0.5), "nearest"), ("iuv", torch.full((3, H, W), 2.), "[0,1]"),
    ("boxes", torch.tensor([[5., 5., 9., 9.], [9., 5., 5., 9.]]), "box 1"), ("boxes", torch.zeros(3, 4), "N = 2"), ("joints2d", torch.rand(2, 17, 2), "J = 16"),
    ("joints2d", torch.linspace(-1, 1, 64).reshape(2, J, 2), "normalisation"), ("skeleton", "H36M61", "H36M16"), ("skeleton", "COCO17", "J = 17"), ("image_size", (W, H), "height first"),
    ("image_size", (H, W, 3), "(H, W)"), ("frame", "wrold", "'world'"), ("fps", 0, "above 0"), ("action", -1, "at least 0"), ("action", True, "int"), ("index", "3", "int"),
    ("segments", [(0, 5, 1)], "exclusive"), ("segments", [(2, 2, 1)], "exclusive"), ("segments", [(0.0, 1.5, 1)], "fps"), ("attributes", torch.full((5,), 2.), "attribute_mask"),
    ("attribute_mask", torch.ones(4, dtype=torch.bool), "A = 5"), ("joint2d", torch.zeros(1), "joints2d"), ("camera", dict(K=torch.eye(3)), "no R"),
])
def test_known_slips_get_their_advice(key, value, hint):
    assert hint in str(broken(key, value))


def test_camera_parts_are_checked():
    good = full()["camera"]
    for part, value, hint in (("K", torch.zeros(3, 3), "fx"), ("R", -torch.eye(3), "rotation"), ("t", torch.zeros(2), "camera.t"), ("distortion", torch.zeros(5).double(), "float32")):
        assert hint in str(broken("camera", good | {part: value}))


@pytest.mark.parametrize("key, need", [(k, n) for k, f in FIELDS.items() for n in f.needs])
def test_companions_are_demanded(key, need):
    with pytest.raises(SampleError, match=need): validate(full(drop={need}))


@FAST
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 99), st.sets(st.sampled_from(["image", "depth", "joints3d", "boxes", "camera", "action", "caption", "identity"]))), min_size=1, max_size=4))
def test_batch_marks_everything_missing_and_loses_nothing(plan):
    samples = [full(n, t, 1, seed, drop) for n, t, seed, drop in plan]
    batch = collate(samples)
    assert batch["person_mask"].sum(1).tolist() == [n for n, *_ in plan]
    assert batch["frame_mask"].sum(1).tolist() == [t for _, t, *_ in plan]
    for key in FIELDS:
        has = [key in s for s in samples]
        assert (key in batch) == any(has) == (f"has_{key}" in batch)
        if any(has): assert batch[f"has_{key}"].tolist() == has and batch[f"has_{key}"].dtype == torch.bool
    for key in TENSORS:
        for i, sample in enumerate(samples):
            row = batch[key][i] if key in batch else None
            if key in sample and key not in ("joints2d", "joints3d", "sequence", "attributes"):
                assert torch.equal(row[tuple(slice(n) for n in sample[key].shape)], sample[key]) and row.count_nonzero() == sample[key].count_nonzero()
            elif row is not None and key not in sample: assert row.count_nonzero() == 0
    for i, sample in enumerate(samples):
        seen, n = sample["visibility"] > 0, plan[i][0]
        assert torch.equal(batch["joints2d"][i, :n][seen], sample["joints2d"][seen])


def test_unlabelled_nan_cannot_reach_a_loss():
    sample = full(1)
    sample["visibility"][0], sample["visibility"][0, 3] = 2, 0
    sample["joints3d"][0, 3] = float("nan")
    batch = collate([sample])
    assert batch["joints3d"].isfinite().all() and batch["joints3d"][0, 0, 3].abs().sum() == 0
    assert sample["joints3d"][0, 3].isnan().all(), "the sample itself must stay as it was"
    sample["visibility"][0, 3] = 1
    assert collate([sample], check=False)["joints3d"].isnan().any(), "a labelled NaN must never be hidden"


def test_missing_labels_are_no_class():
    batch = collate([full(), full(drop={"action", "identity"})])
    assert batch["action"].tolist() == [3, -1] and batch["has_identity"].tolist() == [True, False]


def test_batches_that_make_no_sense_are_refused():
    with pytest.raises(SampleError, match="0 samples"): collate([])
    lifting = lambda **k: dict(joints2d=torch.rand(1, 16, 2) * 20 + 2, skeleton="H36M16", image_size=(H, W)) | k
    with pytest.raises(SampleError, match="convert"): collate([lifting(), lifting(skeleton="COCO17", joints2d=torch.rand(1, 17, 2) * 20 + 2)])
    with pytest.raises(SampleError, match="resize or crop"): collate([dict(image=torch.rand(3, 8, 8)), dict(image=torch.rand(3, 8, 9))])
    with pytest.raises(SampleError, match="attributes"): collate([dict(attributes=torch.ones(n), attribute_mask=torch.ones(n, dtype=torch.bool)) for n in (2, 3)])
    with pytest.raises(SampleError, match="one frame"): collate([full(), full() | dict(frame="camera")])
    assert collate([lifting(), lifting(image_size=(40, 40))])["image_size"].tolist() == [[H, W], [40, 40]]


def test_error_crosses_a_worker_process():
    class Bad(torch.utils.data.Dataset):
        def __len__(self): return 1
        def __getitem__(self, i): return validate(dict(depth=torch.full((1, 2, 2), 2000.)))
    with pytest.raises(SampleError, match="millimetres"): next(iter(torch.utils.data.DataLoader(Bad(), num_workers=1, collate_fn=collate)))
