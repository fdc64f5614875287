"""What the name of a file says about it. Only known suffixes are trusted."""

from dq_cluster.images.formats import is_readable

# Trusted to be pictures: many millions of files are planned without opening one of them.
_PICTURES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp", ".mpo"),
    *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
}
# Pictures where something is installed that reads them; else their first bytes decide.
_OPTIONAL = {".heic": "HEIC", ".heif": "HEIC", ".hif": "HEIC", ".jxl": "JPEG XL"}
# A TIFF inside, with a thumbnail that would be taken for the picture.
_CAMERA_RAW = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf"),
    *(".srw", ".x3f"),
}
# Believed to be no pictures: they are counted and not opened.
_OTHERS = {
    *(".txt", ".md", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".xml", ".yaml", ".yml"),
    *(".html", ".htm", ".css", ".js", ".py", ".ipynb", ".sh", ".bat", ".log", ".ini", ".cfg"),
    *(".toml", ".conf", ".rst", ".tex", ".rtf", ".srt", ".vtt", ".lst", ".url", ".lnk"),
    *(".db", ".sqlite", ".sqlite3", ".mdb", ".lmdb", ".idx", ".index", ".parquet", ".arrow"),
    *(".feather", ".orc", ".avro", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".pth", ".onnx"),
    *(".safetensors", ".h5", ".hdf5", ".mat", ".tfrecord", ".tfrecords", ".record"),
    *(".zip", ".tar", ".tgz", ".gz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".7z"),
    *(".rar", ".iso", ".dmg", ".pdf", ".doc", ".docx", ".xls", ".xlsx", ".ppt", ".pptx"),
    *(".odt", ".ods", ".odp", ".pages", ".key", ".epub", ".svg", ".svgz", ".eps", ".ps"),
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp"),
    *(".mts", ".m2ts", ".mp3", ".m4a", ".aac", ".wav", ".flac", ".ogg", ".opus", ".wma"),
    *(".xmp", ".aae", ".exe", ".dll", ".so", ".crc", ".md5", ".sha1", ".sha256", ".cls"),
}
# Folders in which systems keep thumbnails, copies, and what was deleted.
SYSTEM_FOLDERS = {
    "__MACOSX",
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "lost+found",
}
CAMERA_RAW = "camera raw"
# Where featurize keeps its account, beside its files; readers pass over names with a dot.
RUN_FOLDER = ".run"
# Of a suffix; longer ones are names with a dot in them.
_SUFFIX_LENGTH = 16


def suffix_of(path: str) -> str:
    """What follows the last dot of the file's name: lower case, with the dot, short, or empty."""
    stem, dot, suffix = path.rpartition("/")[2].rpartition(".")
    return f".{suffix[:_SUFFIX_LENGTH].lower()}" if stem and dot and suffix else ""


def is_named_picture(suffix: str) -> bool:
    """Whether files with this suffix are pictures that can be read here."""
    return suffix in _PICTURES or (suffix in _OPTIONAL and is_readable(_OPTIONAL[suffix]))


def is_named_otherwise(suffix: str) -> bool:
    """Whether files with this suffix are no pictures, or cannot be read as they are."""
    return suffix in _OTHERS or suffix in _CAMERA_RAW


def is_camera_raw(suffix: str) -> bool:
    return suffix in _CAMERA_RAW


def system_folder(path: str) -> str | None:
    """The system folder that contains `path`, if there is one."""
    return next((part for part in path.split("/")[:-1] if part in SYSTEM_FOLDERS), None)
