// Package integration holds the tests that need real peers: guests in every QEMU of Debian
// (qemus_test.go), libvirt, QEMU's conventions for back-ends, systemd's socket activation. The
// tests carry the build tag "integration" and need the packages that "make deps" installs; "make
// test" runs them. A missing dependency is an error, with two exceptions: the tests of Debian
// unstable's QEMU are skipped while its packages cannot be unpacked, and QEMU's own tests run only
// with "make test-qemus".
//
// COWBLK_PROMOTIONS=50 makes the promotion tests promote fifty times in each mode; by default they
// promote a few times. COWBLK_KILLS=200 kills the back-end of a guest under fio that often, on each
// QEMU. COWBLK_QEMUS=all runs the QEMU tests on every QEMU.
//
// Packages: outage tests real file systems on a device that fails; harness drives the machines;
// artefacts makes the images; vhostnbd is a front-end for guests that run a back-end themselves;
// demo is the narrated tour; lint checks the rules of the source tree; reader reads stores without
// the product's code; bench compares and measures.
package integration
