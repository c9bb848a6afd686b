// Package blk is the virtio block device's side of a request (virtio 1.2, 5.2):
// the configuration space and features offered to the driver, the parsing of a
// chain into a Request whose data aliases guest memory, and its completion
// with a status byte. It does no I/O and knows nothing of disks.
//
// A request passes through three states. Parse either decides it (a type or
// flag that is not supported, a range beyond the disk, the disk's name) or
// leaves it pending; whoever does the I/O ends it with a Status; Finish writes
// the status byte and says how many bytes the used element may claim.
//
// The device makes no assumption about where descriptors begin and end (2.7.4):
// the header is the first 16 readable bytes, the status is the last writable
// byte, data is what lies between, however the driver cut it. Header and
// segments are copied from guest memory once, then checked.
package blk
