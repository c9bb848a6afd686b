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
# is configured to use. Backports, which few have configured, are looked for
# where the release itself lives; any other suite that apt has no source for is
# left out.
debian_sources() {
    # Without release info: lists that were never fetched, or were removed, do not hide a source.
    local known site suite
    known=$(apt-get indextargets --no-release-info --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages')
    site=$(awk -v r="$release" '$1 == r { print $2; exit }' <<<"$known")
    [ -n "$site" ] || die "apt on this machine has no source for Debian $release:" \
        "the recipes need a Debian 12 machine, or a $release entry in /etc/apt/sources.list"
    known+=$'\n'"$release-backports $site"
    for suite in "$@"; do
        awk -v r="$suite" '$1 == r { print "deb", $2, r, "main"; exit }' <<<"$known"
    done
}
