"""Every method's loss as others have it: torchdistill's, and the papers' formulas in NumPy.

torchdistill is imported by its one module of losses, which needs neither torchvision nor yaml.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torchdistill.losses import mid_level as peer

from contrast_loss import Moment

# ---------------------------------------------------------------- the peer


def io(x):
    """A tensor where torchdistill looks for it."""
    return {"m": {"output": x}}


WHERE = ("m", "output", "m", "output")
MEAN_SQUARE = peer.SimpleLossWrapper(
    torch.nn.MSELoss(),
    input={"is_from_teacher": False, "module_path": "m", "io": "output"},
    target={"is_from_teacher": True, "module_path": "m", "io": "output"},
)


def peer_kd(s, t, temperature):
    kl = peer.KDLoss(*WHERE, temperature=temperature, alpha=0)(io(s), io(t))
    return kl + torch.distributions.Categorical(logits=t / temperature).entropy().mean()


def peer_dist(s, t, temperature):
    return peer.DISTLoss(*WHERE, tau=temperature)(io(s), io(t)) / temperature**2


def peer_ls(s, t, temperature):
    classes = s.shape[1]
    ratio = math.sqrt((classes - 1) / classes)  # our std over its: it divides by K - 1
    kl = peer.LogitStdKDLoss(*WHERE, temperature=temperature * ratio, eps=1e-12, alpha=0)
    kl = kl(io(s), io(t))
    return temperature**2 * kl


def peer_mse(s, t, temperature):
    return s.shape[1] / 2 * MEAN_SQUARE(io(s), io(t), None)


def peer_fitnet(student, teacher, regressor):
    hint = teacher["stage2"]
    return hint.shape[1] / 2 * MEAN_SQUARE(io(regressor(student["stage1"])), io(hint), None)


def peer_at(student, teacher, regressor):
    met = {"stage1": "stage2", "stage2": "stage3"}
    pairs = {
        mine: {
            "student": {"path": mine, "io": "output"},
            "teacher": {"path": theirs, "io": "output"},
            "weight": 0.5 / student[mine][0, 0].numel(),
        }
        for mine, theirs in met.items()
    }
    s = {name: {"output": x} for name, x in student.items()}
    t = {name: {"output": x} for name, x in teacher.items()}
    return peer.ATLoss(pairs, mode="paper")(s, t)


def peer_rkd(student, teacher, regressor):
    return peer.RKDLoss("m", "m", 1.0, 2.0, "mean")(io(student["pooled"]), io(teacher["pooled"]))


def peer_cc(student, teacher, regressor):
    kernel = {"type": "gaussian", "gamma": 0.4, "max_p": 2}
    s, t = F.normalize(student["pooled"]), F.normalize(teacher["pooled"])
    norm = peer.CCKDLoss("m", "m", kernel, reduction="sum")(io(s), io(t))
    return norm**2 / len(s) ** 2


MET = {"stage1": "stage2", "stage2": "stage3"}


def outputs(stages):
    return {name: {"output": x} for name, x in stages.items()}


def pairs_of(weights):
    return {
        mine: {
            "student": {"path": mine, "io": "output"},
            "teacher": {"path": theirs, "io": "output"},
            "weight": weight,
        }
        for (mine, theirs), weight in zip(MET.items(), weights, strict=True)
    }


def peer_ab(student, teacher, connectors):
    s = {name: c(student[name]) for name, c in zip(MET, connectors, strict=True)}
    loss = peer.AltActTransferLoss(pairs_of([0.5, 1.0]), margin=1.0, reduction="mean")
    return loss(outputs(s), outputs(teacher))


def peer_vid(student, teacher, guesses):
    s = {name: guess(student[name]) for name, guess in zip(MET, guesses, strict=True)}
    return peer.VIDLoss(pairs_of([1.0, 1.0]))(outputs(s), outputs(teacher))


def peer_ft(student, teacher, factors):
    s = factors.translate(student["stage2"])
    t = factors.paraphrase(teacher["stage3"])
    return peer.FTLoss()(outputs({"translator": s}), outputs({"paraphraser": t}))


def peer_reviewkd(student, teacher, fusions):
    """ABF in the shape of its equation, HCL torchdistill's."""
    total, left = 0.0, None
    loss = peer.HierarchicalContextLoss("m", "output", "m", "output")
    pooled = student["pooled"][..., None, None], teacher["pooled"][..., None, None]
    pairs = [pooled, *((student[s], teacher[t]) for s, t in reversed(MET.items()))]
    for (s, t), fusion in zip(pairs, fusions, strict=True):
        x = fusion.enter(s)
        if left is not None:
            side = x.shape[2] // left.shape[2]
            y = left.repeat_interleave(side, 2).repeat_interleave(side, 3)
            a, b = fusion.attention(torch.cat([x, y], 1)).sigmoid().unbind(1)
            x = torch.einsum("bchw,bhw->bchw", x, a) + torch.einsum("bchw,bhw->bchw", y, b)
        left = x
        total = total + loss({"m": {"output": (fusion.leave(x), None)}}, io(t))
    return total


PEERS = {
    "ab": peer_ab,
    "ft": peer_ft,
    "reviewkd": peer_reviewkd,
    "vid": peer_vid,
    "kd": peer_kd,
    "dist": peer_dist,
    "ls": peer_ls,
    "mse": peer_mse,
    "fitnet": peer_fitnet,
    "at": peer_at,
    "rkd": peer_rkd,
    "cc": peer_cc,
}


# ---------------------------------------------------------------- the papers' formulas
# Where torchdistill has no such loss or departs from the paper: plain loops, float64.


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def paper_dkd(s, t, labels, temperature):
    total = 0.0
    for row_s, row_t, label in zip(s, t, labels, strict=True):
        p_s, p_t = softmax(row_s / temperature), softmax(row_t / temperature)
        b_s, b_t = [p_s[label], 1 - p_s[label]], [p_t[label], 1 - p_t[label]]
        q_s = np.delete(p_s, label) / (1 - p_s[label])
        q_t = np.delete(p_t, label) / (1 - p_t[label])
        total += temperature**2 * (1 * kl(b_t, b_s) + 8 * kl(q_t, q_s))
    return total / len(s)


def paper_dist(s, t, labels, temperature):
    p_s = np.array([softmax(row / temperature) for row in s])
    p_t = np.array([softmax(row / temperature) for row in t])
    inter = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s, p_t, strict=True)]
    intra = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p_s.T, p_t.T, strict=True)]
    return np.mean(inter) + np.mean(intra)


def paper_ls(s, t, labels, temperature):
    total = 0.0
    for row_s, row_t in zip(s, t, strict=True):
        z_s = (row_s - row_s.mean()) / math.sqrt(np.mean((row_s - row_s.mean()) ** 2))
        z_t = (row_t - row_t.mean()) / math.sqrt(np.mean((row_t - row_t.mean()) ** 2))
        total += temperature**2 * kl(softmax(z_t / temperature), softmax(z_s / temperature))
    return total / len(s)


def cosine(a, b):
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def paper_smooth(s, t, labels, temperature):
    """-1/K sum over k of log p_k: the uniform distribution's cross entropy with the student's."""
    return sum(-sum(math.log(p) for p in softmax(row)) / len(row) for row in s) / len(s)


def paper_sp(student, teacher):
    grams = []
    for stage in (student["stage2"], teacher["stage4"]):  # the last convolutions
        rows = stage.reshape(len(stage), -1)
        gram = [[a @ b for b in rows] for a in rows]
        grams.append(np.array([[x / math.sqrt(sum(y * y for y in r)) for x in r] for r in gram]))
    return np.sum((grams[0] - grams[1]) ** 2) / len(grams[0]) ** 2


def paper_pkt(student, teacher):
    total = 0.0
    s, t = student["pooled"], teacher["pooled"]
    for i in range(len(s)):
        others = [j for j in range(len(s)) if j != i]
        p = np.array([(cosine(t[i], t[j]) + 1) / 2 for j in others])
        q = np.array([(cosine(s[i], s[j]) + 1) / 2 for j in others])
        total += kl(p / p.sum(), q / q.sum())
    return total


def paper_cc(student, teacher):
    def kernel(a, b):
        dot = cosine(a, b)
        return math.exp(-0.8) * (1 + 0.8 * dot + 0.8**2 / 2 * dot**2)

    s, t = student["pooled"], teacher["pooled"]
    entries = [(i, j) for i in range(len(s)) for j in range(len(s))]
    return sum((kernel(s[i], s[j]) - kernel(t[i], t[j])) ** 2 for i, j in entries) / len(s) ** 2


def paper_nst(student, teacher):
    total = 0.0
    for mine, theirs in (("stage1", "stage2"), ("stage2", "stage3")):
        for s, t in zip(student[mine], teacher[theirs], strict=True):
            s, t = ([c.ravel() / math.sqrt((c * c).sum()) for c in x] for x in (s, t))
            for sign, one, other in ((1, t, t), (1, s, s), (-2, t, s)):
                kernel = [float(a @ b) ** 2 for a in one for b in other]
                total += sign * np.mean(kernel) / len(student[mine])
    return total


def paper_crd(student, teacher, bank):
    """Each image's negatives in turn: those of other classes."""
    bank = {name: x.double().numpy() for name, x in {**bank.state_dict(), **draw_of(bank)}.items()}
    labels, total = bank["labels"], 0.0
    for side, other in (("student", "teacher"), ("teacher", "student")):
        features, rows = {"student": student, "teacher": teacher}[side]["pooled"], f"of_{other}"
        z = math.exp(bank["level"][int(side == "teacher")]) * 50
        for i, x in enumerate(features):
            x = bank[f"{side}.weight"] @ x + bank[f"{side}.bias"]
            p = np.exp(bank[rows] @ x / math.sqrt(x @ x) / 0.07) / z
            times = bank["drawn"] * (labels != labels[2 * i])
            noise = times.sum() / 50
            terms = [times[j] * math.log(1 - p[j] / (p[j] + noise)) for j in range(50)]
            total -= math.log(p[2 * i] / (p[2 * i] + noise)) + sum(terms)
    return total / len(student["pooled"])


def draw_of(bank):
    """How often each of 50 images is drawn in the step that method_inputs.stage_loss has."""
    chosen = bank.negatives(Moment(torch.arange(2), 1, 1, 2))
    return {"drawn": chosen.bincount(minlength=50), "labels": bank.labels}


def paper_fsp(student, teacher, widths):
    """G_s and G_t entry by entry, the larger map's largest of each 2x2."""
    maps = []
    for x, widen in zip((student["stage1"], student["stage2"]), widths, strict=True):
        weights = [w.detach().double().numpy()[:, :, 0, 0] for w in widen.parameters()]
        kernel = weights[0] if weights else np.eye(x.shape[1])
        maps.append(np.einsum("oc,bchw->bohw", kernel, x))
    flows = []
    for first, second in (maps, (teacher["stage2"], teacher["stage3"])):
        blocks = [first[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
        top = np.maximum.reduce(blocks)
        flows.append(np.einsum("bchw,bdhw->bcd", top, second) / 4)
    return np.mean((flows[0] - flows[1]) ** 2)


PAPERS = {
    "fsp": paper_fsp,
    "nst": paper_nst,
    "crd": paper_crd,
    "dkd": paper_dkd,
    "dist": paper_dist,
    "ls": paper_ls,
    "smooth": paper_smooth,
    "sp": paper_sp,
    "pkt": paper_pkt,
    "cc": paper_cc,
}
