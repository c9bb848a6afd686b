# Shell functions shared by the recipes in this folder; sourced, never run.

# The Debian release that the golden image, its kernel and QEMU 7.2 come from.
release=bookworm

say() { echo "$*" >&2; }

die() {
    say "artefact: $*"
    exit 1
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null ||
            PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null ||
            die "$tool is not installed; run 'make deps' to install what is missing"
    done
}

# debian_sources SUITE… prints a sources.list that reaches the given suites
# through the mirror (or local proxy, or snapshot) that this machine's own apt
# is configured to use. A suite that apt does not know, such as backports, is
# looked for where the release itself lives.
debian_sources() {
    local site
    site=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
        awk -v r="$release" '$2 == r { print $1; exit }')
    [ -n "$site" ] || die "apt on this machine has no source for Debian $release:" \
        "the recipes need a Debian 12 machine, or a $release entry in /etc/apt/sources.list"
    local suite known
    for suite in "$@"; do
        known=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE)' 'Created-By: Packages' |
            awk -v r="$suite" '$2 == r { print $1; exit }')
        echo "deb ${known:-$site} $suite main"
    done
}
