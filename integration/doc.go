// Package integration holds what only real peers can show: guests in every
// QEMU of Debian (qemus_test.go), libvirt, QEMU's conventions for back-ends, systemd's socket
// activation. The tests carry the build tag "integration" and need the
// packages that "make deps" installs; "make test" runs them. What is missing is an
// error; the only tests that are skipped are those of Debian unstable's QEMU while
// it cannot be unpacked, and QEMU's own tests, which are part of "make test-qemus".
//
// COWBLK_PROMOTIONS=50 makes the tests of promotions, which promote a few times
// otherwise, do so fifty times in each way. COWBLK_KILLS=200 kills the back-end of
// a guest under fio that often, on each QEMU. COWBLK_QEMUS=all runs the tests that
// concern QEMU on every one.
//
// outage has real file systems on a device that fails, harness drives the machines,
// artefacts makes the images, vhostnbd is a front-end for guests that have a back-end
// of their own, demo is the narrated tour, lint holds the rules of the source tree.
package integration
