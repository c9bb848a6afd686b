// Command cowblk serves stacks of copy-on-write layers to QEMU over vhost-user-blk, and manages them by name.
//
// One file per sub-command. A sub-command parses and prints; what it does is in cow/store and backend. The only exit
// of the process is in main; everything else returns an error, which exit.go turns into a documented exit code.
//
// COWBLK_KILL_CYCLES=2000 makes the test of a process that is killed under load kill that often, in some minutes.
package main
