// Command demo is the narrated tour behind "make demo": a golden Debian image,
// two disks on top of it, two guests that write, stop, start again and find
// what they wrote, and nothing of the other's. It fails when any of that does
// not hold.
package main
