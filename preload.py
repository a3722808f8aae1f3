"""WebUI's own command line, extended before it is read."""


def preload(parser):
    parser.add_argument(
        "--resshift-models-path", type=str, default=None, help="folder of ResShift model files, beside models/ResShift"
    )
