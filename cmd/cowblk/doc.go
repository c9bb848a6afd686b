// Command cowblk serves stacks of copy-on-write layers to QEMU over vhost-user-blk, and manages
// them by name.
//
// Each sub-command has its file. A sub-command parses and prints; cow/store, backend/daemon and
// backend/client do the work. The process exits only in main; everything else returns an error,
// which exit.go maps to a documented exit code.
//
// COWBLK_KILL_CYCLES=2000 sets the number of kills in the test of a process that is killed under
// load; 2000 take some minutes.
package main
