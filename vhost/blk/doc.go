// Package blk is the device's side of a virtio block request (virtio 1.2, 5.2): the configuration
// space and features offered to the driver, the parsing of a chain into a Request whose data
// aliases guest memory, and its completion with a status byte. It does no I/O.
//
// A request passes through three states. Parse either decides it (a type or flag that is not
// supported, a range beyond the disk, the disk's name) or leaves it pending; the I/O ends it with a
// Status; Finish writes the status byte and returns the length for the used element.
//
// The device makes no assumption about descriptor boundaries (2.7.4): the header is the first 16
// readable bytes, the status is the last writable byte, and data is in between. Header and segments
// are copied from guest memory once, then checked.
package blk
