"""Videos and images of strangers: names are never addresses, sizes are bounded, and what is bad is one problem."""

import os
import re
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fer_pll.inference.media import VIDEOS, list_files, show

av = pytest.importorskip("av")


def write_video(
    path: Path, width: int = 64, height: int = 48, frames: int = 3, codec: str = "mpeg4", **options
) -> Path:
    with av.open(str(path), "w", **options) as container:
        stream = container.add_stream(codec, rate=5)
        stream.width, stream.height = width, height
        stream.pix_fmt = "gray" if codec == "png" else "yuv420p"
        for _ in range(frames):
            frame = av.VideoFrame.from_ndarray(np.zeros((height, width), np.uint8), format="gray")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def listener():
    """A server that counts who comes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        visits: list[object] = []

        def run() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                visits.append(1)
                connection.close()

        threading.Thread(target=run, daemon=True).start()
        yield server.getsockname()[1], visits
        server.shutdown(socket.SHUT_RDWR)


# What FFmpeg's documentation ("Protocols") lists; PyAV has no list of what it was built with.
PROTOCOLS = """\
amqp async bluray cache concat concatf crypto data fd ffrtmpcrypt ffrtmphttp file ftp gopher gophers hls
http httpproxy https icecast ipfs ipns librist librtmp librtmpe librtmps librtmpt librtmpte libsmbclient libsrt libssh
libzmq md5 mmsh mmst pipe prompeg rtmp rtmpe rtmps rtmpt rtmpte rtmpts rtp rtsp sap sctp sftp smb srt srtp subfile tcp
tee tls udp udplite unix zmq""".split()  # noqa: SIM905


@pytest.mark.parametrize(
    "protocol", [*PROTOCOLS, "cache:http", "async:tcp", "crypto:http", "subfile,,start,0,end,9,,:http"]
)
def test_a_name_is_never_an_address(protocol, listener, tmp_path, monkeypatch):
    port, visits = listener
    monkeypatch.chdir(tmp_path)
    name = f"{protocol}:127.0.0.1:{port}?x.mp4"
    write_video(tmp_path / "plain.mp4").rename(tmp_path / name)
    for given in (name, Path(name), tmp_path / name):
        shown = list(show(given))
        assert [each.frame for each in shown] == [0, 1, 2] and not any(each.problem for each in shown)
    assert list_files(["."]) == [Path(name)]
    assert visits == []


@pytest.mark.parametrize(
    "content",
    [
        "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n",
        "ffconcat version 1.0\nfile {}\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
        '<Representation id="1"><BaseURL>{}</BaseURL></Representation></AdaptationSet></Period></MPD>',
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n{}",
        "[playlist]\nFile1={}\n",
    ],
    ids=["hls", "concat", "dash", "sdp", "pls"],
)
@pytest.mark.parametrize("ending", [".mp4", ".ts", ".mkv"])
def test_contents_that_name_other_files_are_not_followed(content, ending, listener, tmp_path):
    port, visits = listener
    secret = write_video(tmp_path / "secret.ts")
    for target in (f"http://127.0.0.1:{port}/x.ts", f"tcp://127.0.0.1:{port}", secret.as_uri(), str(secret)):
        path = tmp_path / f"list{ending}"
        path.write_text(content.format(target))
        (shown,) = show(path)
        assert shown.image is None and shown.problem
    assert visits == []


MEASURE = """
import resource, sys
from fer_pll.inference.media import show
import av
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for shown in show(sys.argv[1]):
    print(shown.frame, shown.problem)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_frame_has_no_more_pixels_than_an_image_may(tmp_path):
    """16,000 x 16,000 gray pixels in half a megabyte took 3.7 GB."""
    bomb = write_video(tmp_path / "bomb.avi", 16_000, 16_000, 1, "png")
    assert bomb.stat().st_size < 2_000_000
    run = subprocess.run([sys.executable, "-c", MEASURE, bomb], capture_output=True, text=True, check=True)
    problem, megabytes = run.stdout.splitlines()
    assert problem.startswith("None ") and "50,000,000 pixels" in problem
    assert int(megabytes) < 200


@pytest.mark.parametrize(("limit", "frames"), [("3071", 0), ("3072", 3)])
def test_the_limit_of_frames_is_that_of_images(limit, frames, tmp_path, monkeypatch):
    monkeypatch.setenv("FER_PLL_MAX_PIXELS", limit)
    shown = list(show(write_video(tmp_path / "a.mp4")))
    assert sum(each.image is not None for each in shown) == frames
    assert [each for each in shown if each.problem and "3,071 pixels" in each.problem] == shown[frames:]


def test_a_video_without_a_frame_is_a_problem(tmp_path):
    (shown,) = show(write_video(tmp_path / "empty.mp4", frames=0))
    assert shown.problem


def test_sound_alone_is_a_problem(tmp_path):
    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    (shown,) = show(tmp_path / "sound.mkv")
    assert shown.problem == "no images in this file"


def test_damaged_metadata_harms_nobody(tmp_path):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "TITLETITLE"
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64), np.uint8), format="gray")))
        container.mux(stream.encode())
    content = path.read_bytes()
    assert content.count(b"TITLETITLE") == 1
    path.write_bytes(content.replace(b"TITLETITLE", b"\x9e\xff\xfeTITLET\xc3"))
    (shown,) = show(path)
    assert shown.image is not None


def test_every_damage_has_a_row(tmp_path):
    """Single bytes, and the file cut off anywhere: frames, a problem, or both; never nothing or an exception."""
    content = write_video(tmp_path / "whole.mp4", frames=2).read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "damaged.mp4"
    for number in range(150):
        damaged = bytearray(content)
        for place in rng.integers(0, len(content), 4):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(bytes(damaged if number % 3 else content[: rng.integers(0, len(content))]))
        shown = list(show(path))
        assert shown and all((each.image is None) == (each.problem is not None) for each in shown)


@pytest.mark.parametrize("name", ["pipe.mp4", "pipe.png"])
def test_pipes_are_passed_over_in_folders_and_refused_by_name(name, tmp_path):
    os.mkfifo(tmp_path / name)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert list_files([str(tmp_path)]) == list_files([str(tmp_path / "*")]) == [tmp_path / "a.png"]
    with pytest.raises(ValueError, match=f"{name}: this is no regular file"):
        list_files([str(tmp_path / name)])
    (shown,) = show(tmp_path / name)  # it may have become one since
    assert shown.problem == "there is no such file"
    assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)


@pytest.mark.parametrize("source", ["/dev/zero", "/dev/null"])
def test_devices_are_refused(source):
    with pytest.raises(ValueError, match="this is no regular file"):
        list_files([source])


@pytest.mark.parametrize("name", ["a" * 300 + ".mp4", "a\0.mp4", "a" * 300 + ".png", "a\0.png"])
def test_names_that_no_file_system_takes(name):
    with pytest.raises(ValueError, match="there is no such file or folder"):
        list_files([name])
    (shown,) = show(name)
    assert shown.problem


def test_a_name_that_is_not_unicode_is_a_video_like_others(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    try:
        write_video(tmp_path / "a.mp4").rename(name)
    except OSError:
        pytest.skip("this file system has Unicode names only")
    assert [each.frame for each in show(Path(name))] == [0, 1, 2]


def test_urls_are_kept_apart_from_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    assert list_files(["a.png", "http://127.0.0.1:1/x.png"]) == [Path("a.png"), "http://127.0.0.1:1/x.png"]
    for url in ("http://127.0.0.1:1/x.png", "http://127.0.0.1:1/x.mp4?a=b", "http://[::1/x.mp4"):
        (shown,) = show(url, timeout=2)
        assert shown.problem.startswith("cannot be downloaded"), shown
    assert all(re.fullmatch(r"\.[a-z0-9]+", ending) for ending in VIDEOS)
