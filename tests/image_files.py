"""Image files that OpenCV does not write."""

import base64
import struct
import zlib

# Three stripes, 16 x 24, in Adobe's inverted CMYK.
CMYK_JPEG = zlib.decompress(
    base64.b85decode(
        "c-s4a<NrGbKF5^&q*R6!1|VSif1AOXftiU3gn)nrh*&vTSy@<Ex!Bp+IC!{tc(}Q^xq1171bF!b`M9|S!~_I|MMOnKdHBU8#6%>7L_|eE"
        "hA=V%^{}vVva)iD@N)BtkPQAGU=ZP85MYpCVH9Lw5@ci+WMmO!_<w{!o`Hdpl@SaWpn#DH=u9?t4o)s^pn|Oe3`~s7%uFoIAcq5GYk~3%"
        "EP|{;iiVDC!hwnGN`)dujT0AgC_8ODC>nI}gNkudQ4=SZn7D+bl&YG#hNhN@shPQjrIoXbtDC!rr&n-DXjpheWK?oWYFc_mW>#@YX<2zi"
        "WmR)aYg>CqXV;|3Q>IRvK4a#rMT?g#UABD1%2k^-Z`rzS`;MKv4jn#n^w{weCr@3veC6u3>o;!Rdidz^lc&#~zj*oT<EPJGzJB}u<L57s"
        "zZe;q8DRjczkuPu$i%|J%)$=x7b8<SNP!>=tD+&BkYgZwVxh2-Q6q<l)5L`v4{|CS2YnDtD!Rxereg9?^&`k@V4o4^u_m&72KN}kU$+?e"
        "SQvrv2XrR`gFVByuD=TZwCqD(AAfzr{(8XrC9nVNvDe~yto>Kp{_KbK^6L}+GsHUWo4o$hhd(Q{|K9`v;y&DZ"
    )
)
CMYK_RGB = ((200, 40, 40), (40, 180, 60), (30, 60, 220))  # of the stripes


def exif_turned(jpeg: bytes, order: str = "<", orientation: int = 6) -> bytes:
    """The JPEG with EXIF's orientation tag (6: turn clockwise), in either byte order."""
    magic = {"<": b"II*\0", ">": b"MM\0*"}[order]
    # One IFD entry: tag 0x112, type SHORT, count 1.
    tiff = magic + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x112, 3, 1, orientation, 0, 0)
    app1 = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(app1) + 2) + app1 + jpeg[2:]
