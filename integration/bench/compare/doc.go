// Package compare measures cowblk beside its alternatives on this machine. It starts every
// contender itself, on the same files or equal ones, in one run. It refuses a busy machine.
//
// Contenders take turns in several rounds, so that other activity of the machine affects all alike;
// every second round runs backwards. Ratios are taken within each round (package report). Servers
// are restarted for each round, and first read all of their disks. Data is in the page cache unless
// the workload says otherwise, and written data is flushed before the next turn.
//
// The base image is written, dropped from the page cache and read again in order, so that it is
// cached like an image that has long been on the disk. Everything that is overwritten (heads, plain
// files, the qcow2 overlay) was filled by its own server with the same requests. Sealed layers and
// the images of a qcow2 chain own the same few extents.
//
// Disks with scattered blocks, and qcow2 overlays in the same states, were written in the same
// random order (owned.go). Servers of first reads are started for the sample and read each block
// once (first_touch.go, boot_storm.go).
//
// All files lie in one directory, which is removed at the end, also after an error or an
// interruption. All child processes are ended and waited for.
package compare
