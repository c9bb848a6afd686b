# What a benchmark inside a guest on the golden image needs beside it.
#
# out/tools.tar   bonnie++, and dmsetup with its library, all in one folder
#
# Of the same release as the golden image, which has the other libraries.

need mmdebstrap tar

debian_sources "$release" "$release-updates" "$release-security" |
    mmdebstrap --variant=extract --include=bonnie++,dmsetup --aptopt='Acquire::Retries "3"' "$release" tree.tar -
mkdir tree
tar -xf tree.tar -C tree --transform "s,.*/,," --wildcards "*sbin/bonnie++" "*sbin/dmsetup" "*/libdevmapper.so*"
tar -C tree --owner=0 --group=0 -cf out/tools.tar .
