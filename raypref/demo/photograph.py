"""Takes photographs of scenes: rays march through signed distances under a sun and a sky.

Soft shadows, reflections, clouds and film grain, all from the scene and a seed. Points, directions
and colours are float32 [3, N]; y is up, the ground is y = 0, a unit is about 18 pixels, light is
linear RGB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from raypref.demo.scene import COLOURS, Scene, Thing

Floats = npt.NDArray[np.floating[Any]]

SIZE = 64
_RAYS = 2 * SIZE  # rays along a side: four a pixel smooth the edges


def render_scene(scene: Scene, *, seed: int) -> npt.NDArray[np.uint8]:
    """Photograph the scene: uint8 [64, 64, 3], RGB.

    The seed places things, camera and sun, and makes the texture of the ground and the grain.
    """
    camera = _Camera(scene, seed)
    light = _pixels(camera.see(camera.eye, camera.rays, mirror=True))
    light *= camera.light.exposure * camera.rng.uniform(0.9, 1.15)
    film = 1 - np.exp(-1.35 * light)  # bright parts saturate softly, as on film
    film = np.clip(_saturate(film, camera.light.saturation), 0, 1) ** (1 / 2.2)
    film = _soften(film)  # no lens is sharper than its film
    film += camera.rng.normal(0, 0.008, (SIZE, SIZE, 1))
    return (np.clip(film, 0, 1) * 255).round().astype(np.uint8)


def object_mask(scene: Scene, *, seed: int) -> npt.NDArray[np.bool_]:
    """The pixels of the rendered scene that show things, without shadows: [64, 64]."""
    camera = _Camera(scene, seed)
    hit = np.isfinite(camera.march(camera.eye, camera.rays))
    return _pixels(hit[None].astype(np.float32))[..., 0] > 0.5


def fade(photo: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The same photograph, flat and nearly grey."""
    return (40 + 0.57 * _saturate(photo, 0.12) + 0.08 * 128).astype(np.uint8)


def degrade(photo: npt.NDArray[np.uint8], amount: float) -> npt.NDArray[np.uint8]:
    """The same photograph out of focus and dull; 0 leaves it as it is, 1 is worst."""
    blurred = Image.fromarray(photo).filter(ImageFilter.GaussianBlur(1.3 * float(amount)))
    dull = _saturate(np.asarray(blurred), 1 - 0.6 * amount)
    flat = 128 + (dull - 128) * (1 - 0.2 * amount)
    return flat.round().clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Light:
    """Colours of sun, zenith and horizon; height of the sun (rad); exposure and saturation."""

    sun: tuple[float, float, float]
    zenith: tuple[float, float, float]
    horizon: tuple[float, float, float]
    height: float
    exposure: float = 1
    saturation: float = 1


_LIGHTS = {
    "day": _Light((2.3, 2.1, 1.8), (0.10, 0.28, 0.72), (0.55, 0.75, 0.95), 0.85),
    "dusk": _Light((2.2, 1.0, 0.35), (0.10, 0.10, 0.32), (0.98, 0.42, 0.18), 0.38),
    "night": _Light((0.30, 0.40, 0.68), (0.008, 0.015, 0.06), (0.04, 0.07, 0.16), 0.80, 1.7),
    "cloudy": _Light((0.4, 0.4, 0.4), (0.42, 0.44, 0.48), (0.6, 0.62, 0.65), 1.1, 1.0, 0.45),
}


@dataclass(frozen=True)
class _Placed:
    """A thing that stands somewhere: at [3, 1], turned and scaled to unit size by turn [3, 3]."""

    thing: Thing
    at: Floats
    turn: Floats
    size: float

    def distance(self, p: Floats) -> Floats:
        return _distance(self.thing.shape, *(self.turn @ (p - self.at))) * self.size

    def albedo(self, p: Floats) -> Floats:
        p = self.turn @ (p - self.at)
        cells = p * 1.9 + 0.25
        pale = {
            "striped": np.sin(p[1] * 9.5 + p[0] * 2) > 0.15,
            "spotted": _length(*(cells - np.floor(cells) - 0.5)) < 0.36,
        }.get(self.thing.material, np.False_)
        return np.where(pale, np.float32(0.85), _column(*COLOURS[self.thing.colour]))


class _Camera:
    """One photograph in the making: the placed things, the light and the rays [3, N]."""

    def __init__(self, scene: Scene, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.scene, self.rng, self.light = scene, rng, _LIGHTS[scene.moment]
        self.lattice = rng.random((64, 64), dtype=np.float32)
        side, flat = rng.uniform(0.6, 1.2) * rng.choice([-1, 1]), np.cos(self.light.height)
        self.to_sun = _column(np.sin(side) * flat, np.sin(self.light.height), -np.cos(side) * flat)
        colours = (self.light.sun, self.light.zenith, self.light.horizon)
        self.sun, self.zenith, self.horizon = (_column(*colour) for colour in colours)
        self.hills = 0.45 * self.horizon + _column(0.002, 0.008, 0.006)
        places = (0,) if len(scene.things) == 1 else (-1, 1)
        self.placed = [self._place(*pair) for pair in zip(scene.things, places, strict=True)]
        v, u = np.mgrid[:_RAYS, :_RAYS].reshape(2, -1) + 0.5
        x, y = 0.275 * (u * 2 / _RAYS - 1), 0.275 * (1 - v * 2 / _RAYS)
        pitch = rng.uniform(0.11, 0.16)
        rays = np.stack([x, y * np.cos(pitch) - np.sin(pitch), np.cos(pitch) + y * np.sin(pitch)])
        self.rays = (rays / _length(*rays)).astype(np.float32)
        self.eye = np.broadcast_to(_column(0, 1.6, -6), self.rays.shape)

    def _place(self, thing: Thing, side: int) -> _Placed:
        rng = self.rng
        size = rng.uniform(0.6, 0.68) if side else rng.uniform(0.88, 1.02)
        x = side * rng.uniform(0.72, 0.82) if side else rng.uniform(-0.35, 0.35)
        sunk = 0.2 if self.scene.ground == "water" else 0.03
        yaw = rng.uniform(0.25, 0.6) * rng.choice([-1, 1])
        c, s = np.cos(yaw) / size, np.sin(yaw) / size
        turn = np.array([[c, 0, -s], [0, 1 / size, 0], [s, 0, c]], np.float32)
        return _Placed(thing, _column(x, -sunk * size, rng.uniform(-0.3, 0.3)), turn, size)

    def see(self, start: Floats, rays: Floats, *, mirror: bool) -> Floats:
        """The light that comes back along rays; water reflects only where mirror is True."""
        light = np.empty_like(rays)
        t = self.march(start, rays)
        thing = np.isfinite(t)
        ground = ~thing & (rays[1] < -0.004)
        sky = ~thing & ~ground
        light[:, sky] = self._sky(rays[:, sky])
        t[ground] = -start[1, ground] / rays[1, ground]
        t[sky] = 0
        p = start + t * rays
        light[:, thing] = self._surface(p[:, thing], rays[:, thing])
        light[:, ground] = self._ground(p[:, ground], rays[:, ground], t[ground], mirror)
        return light

    def _nearest(self, p: Floats) -> Floats:
        return np.minimum.reduce([placed.distance(p) for placed in self.placed])

    def _may_meet(self, start: Floats, rays: Floats, radius: float) -> npt.NDArray[np.bool_]:
        # Marching is dear: only rays that pass a thing within its radius are worth it.
        meets = np.zeros(start.shape[1], bool)
        for placed in self.placed:
            to = placed.at + _column(0, placed.size, 0) - start
            along = (to * rays).sum(0)
            reach = radius * placed.size
            meets |= ((to * to).sum(0) - along**2 < reach**2) & (along > -reach)
        return meets

    def march(self, start: Floats, rays: Floats) -> Floats:
        """Distance [N] along each ray to a thing, inf where it meets none."""
        hits = np.full(rays.shape[1], np.inf, np.float32)
        todo = np.flatnonzero(self._may_meet(start, rays, 1.3))
        t = np.zeros(len(todo), np.float32)
        for _ in range(40):
            gap = self._nearest(start[:, todo] + t * rays[:, todo])
            hits[todo[gap < 0.006]] = t[gap < 0.006]
            on = (gap >= 0.006) & (t < 12)
            todo, t = todo[on], t[on] + 0.9 * gap[on]
        return hits

    def _sunlight(self, p: Floats) -> Floats:
        """How much of the sun reaches points, 0..1 [N]; near misses make the soft edge."""
        sharpness = 3 if self.scene.moment == "cloudy" else 9
        lit = np.ones(p.shape[1], np.float32)
        doubtful = self._may_meet(p, self.to_sun, 2.0)
        p, t = p[:, doubtful], np.full(doubtful.sum(), 0.05, np.float32)
        for _ in range(16):
            gap = self._nearest(p + t * self.to_sun)
            lit[doubtful] = np.minimum(lit[doubtful], sharpness * gap / t)
            t += np.clip(gap, 0.06, 0.6)
        return np.clip(lit, 0, 1)

    def _lit(self, normal: Floats, sunlight: Floats, open_sky: Floats) -> Floats:
        """Light on a surface: sun where it reaches, sky from above, a little from below."""
        facing = np.clip((normal * self.to_sun).sum(0), 0, 1) * sunlight
        sky = (0.18 * (self.zenith + self.horizon) + 0.008) * (1 + normal[1]) * open_sky
        return 0.8 * self.sun * (facing + 0.08 * (1 - normal[1])) + sky

    def _surface(self, p: Floats, rays: Floats) -> Floats:
        """Light from points of things, seen along rays."""
        corners = [_column(1, -1, -1), _column(-1, -1, 1), _column(-1, 1, -1), _column(1, 1, 1)]
        slope = np.sum([corner * self._nearest(p + 0.01 * corner) for corner in corners], axis=0)
        normal = slope / np.maximum(_length(*slope), 1e-6)
        sunlight = self._sunlight(p + 0.03 * normal)
        facing = -(rays * normal).sum(0)
        bounce = rays + 2 * facing * normal
        mirror = 0.10 + 0.6 * np.clip(1 - facing, 0, 1) ** 3
        gloss = mirror * np.where(bounce[1] > 0, self._sky(bounce), 0.3 * self.hills)
        gloss += 3 * self.sun * np.clip((bounce * self.to_sun).sum(0), 0, 1) ** 50 * sunlight
        light = self._lit(normal, sunlight, np.clip(0.45 + p[1], 0, 1))
        owner = np.argmin([placed.distance(p) for placed in self.placed], axis=0)
        for index, placed in enumerate(self.placed):
            mine = owner == index
            light[:, mine] *= placed.albedo(p[:, mine])
            if placed.thing.material == "shiny":
                light[:, mine] += gloss[:, mine]
        return light

    def _sky(self, rays: Floats) -> Floats:
        up, angle = np.clip(rays[1], 0, 1), rays[0] / np.maximum(rays[2], 0.2)
        height = np.clip(up * 3.2, 0, 1) ** 0.7
        light = self.horizon * (1 - height) + self.zenith * height
        if self.scene.moment == "night":
            light += 0.6 * ((self._noise(angle * 150, up * 150) > 0.97) & (up > 0.05))
        elif self.scene.moment != "cloudy":
            puff = 0.65 * self._noise(angle * 9, up * 40) + 0.35 * self._noise(angle * 22, up * 80)
            cover = np.clip((puff - 0.5) * 4, 0, 0.85) * np.clip(up * 12, 0, 1)
            light += cover * (0.6 * self.horizon + 0.22 * self.sun - light)
        return np.where(up < 0.012 + 0.05 * self._noise(angle * 6 + 20, 0 * up), self.hills, light)

    def _ground(self, p: Floats, rays: Floats, reach: Floats, mirror: bool) -> Floats:
        """Light from points of the ground, `reach` [N] away, that fade into the haze."""
        up = np.broadcast_to(_column(0, 1, 0), p.shape)
        contact = np.clip(0.35 + 1.6 * self._nearest(p), 0, 1)
        light = self._texture(p[0], p[2]) * self._lit(up, self._sunlight(p), contact)
        if self.scene.ground == "water" and mirror:
            wave = 0.1 * (self._noise(p[0] * 3, p[2] * 1.2) - 0.5)
            bounce = np.stack([rays[0] + wave, 0.5 * np.abs(wave) - rays[1], rays[2]])
            light = 0.5 * light + 0.7 * self.see(p, bounce / _length(*bounce), mirror=False)
        fog = np.clip((reach - 12) / 50, 0, 0.75)
        return light * (1 - fog) + self.hills * fog

    def _texture(self, x: Floats, z: Floats) -> Floats:
        """Albedo of the ground at (x, z)."""
        fine, coarse = self._noise(x * 14, z * 7), self._noise(x * 2 + 9, z * 2)
        match self.scene.ground:
            case "grass":
                blades = 0.55 * self._noise(x * 18, z * 3) + 0.45 * coarse
                return _column(0.05, 0.20, 0.02) + blades * _column(0.16, 0.30, 0.05)
            case "sand":
                ripples = 0.84 + 0.09 * np.sin(z * 5 + 4 * coarse + x)
                return _column(0.62, 0.43, 0.20) * (ripples + 0.2 * fine)
            case "snow":
                return _column(0.74, 0.80, 0.88) * (0.88 + 0.12 * coarse + 0.06 * fine)
            case "wood":
                plank = np.floor(x * 1.4)
                grain = self._noise(x * 16 + plank * 3, z * 0.9 + plank * 11)
                tone = 0.6 + 0.3 * grain + 0.25 * self._noise(plank * 5.3, 0 * z)
                gap = np.abs(x * 1.4 - plank - 0.5) > 0.46
                return _column(0.42, 0.20, 0.08) * tone * np.where(gap, 0.35, 1)
            case "stone":
                row = np.floor(z * 0.8)
                along, across = x * 0.8 + 0.5 * (row % 2), z * 0.8 - row
                tone = 0.75 + 0.35 * self._noise(np.floor(along) * 3.7, row * 5.1) + 0.2 * fine
                gap = np.maximum(np.abs(along % 1 - 0.5), np.abs(across - 0.5)) > 0.46
                return _column(0.34, 0.32, 0.31) * tone * np.where(gap, 0.5, 1)
            case "water":
                return _column(0.02, 0.17, 0.24) * (0.8 + 0.4 * coarse)
        raise AssertionError(f"no ground {self.scene.ground}")

    def _noise(self, x: Floats, y: Floats) -> Floats:
        """Smooth noise 0..1 [N], one bump a unit, repeating after 64."""
        ix, iy = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
        fx, fy = x - ix.astype(np.float32), y - iy.astype(np.float32)
        x0, y0, x1, y1 = ix & 63, iy & 63, (ix + 1) & 63, (iy + 1) & 63
        low = self.lattice[y0, x0] * (1 - fx) + self.lattice[y0, x1] * fx
        high = self.lattice[y1, x0] * (1 - fx) + self.lattice[y1, x1] * fx
        return low + (high - low) * fy * fy * (3 - 2 * fy)


def _distance(shape: str, x: Floats, y: Floats, z: Floats) -> Floats:
    """Signed distance [N] (or a little less) to a shape two units high that stands on y = 0."""
    match shape:
        case "ball":
            return _length(x, y - 1, z) - 1
        case "cube":
            return _length(*(np.maximum(np.abs(a) - 0.68, 0) for a in (x, y - 0.78, z))) - 0.10
        case "cone":
            return np.maximum(0.91 * _length(x, z) + 0.41 * (y - 1.85), -y) - 0.05
        case "cylinder":
            wall, end = _length(x, z) - 0.64, np.abs(y - 0.9) - 0.82
            return _length(np.maximum(wall, 0), np.maximum(end, 0)) - 0.08
        case "ring":
            return _length(_length(x, y - 1) - 0.70, z) - 0.30
        case "star":  # fold the plane into half an arm of the five: its edge is a straight line
            r, arm = _length(x, y - 0.93), np.float32(2 * np.pi / 5)
            angle = np.abs((np.arctan2(x, y - 0.93) + arm / 2) % arm - arm / 2)
            edge = 0.55 * (r * np.cos(angle) - 1.12) + 0.835 * r * np.sin(angle)
            return 0.75 * edge + 0.41 * np.sqrt(z * z + 0.01)
        case "heart":  # a square on its corner with two half discs, blown up like a cushion
            x, slope = np.abs(x), np.maximum(np.abs(x) + y, 0) / 2
            body = np.minimum(_length(x, y - 1.7), _length(x - slope, y - slope)) * np.sign(x - y)
            edge = np.where(x + y > 1.7, _length(x - 0.425, y - 1.275) - 0.6, body)
            return _length(np.maximum(edge + 0.45, 0), z) - 0.45
        case "mug":
            r, tall = _length(x, z), np.abs(y - 0.8) - 0.76
            wall = _length(np.maximum(np.abs(r - 0.62) - 0.04, 0), np.maximum(tall, 0)) - 0.05
            handle = _length(_length(x - 0.72, y - 0.82) - 0.38, z) - 0.09
            return np.minimum(wall, np.maximum(handle, 0.6 - r))
    raise AssertionError(f"no shape {shape}")


def _length(*axes: Floats) -> Floats:
    return np.sqrt(sum((a * a for a in axes), np.float32(0)))


def _column(x: float, y: float, z: float) -> Floats:
    return np.array([[x], [y], [z]], np.float32)


def _soften(image: Floats) -> Floats:
    """Blur [H, W, C] by half a pixel."""
    p = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    p = 0.12 * p[:-2] + 0.76 * p[1:-1] + 0.12 * p[2:]
    return 0.12 * p[:, :-2] + 0.76 * p[:, 1:-1] + 0.12 * p[:, 2:]


def _saturate(image: npt.NDArray[Any], saturation: float) -> Floats:
    grey = (image @ np.array([0.30, 0.59, 0.11], np.float32))[..., None]
    return grey + np.float32(saturation) * (image - grey)


def _pixels(rays: Floats) -> Floats:
    """Rays [C, N] averaged into pixels [64, 64, C]."""
    return rays.reshape(-1, SIZE, 2, SIZE, 2).mean((2, 4)).transpose(1, 2, 0)
