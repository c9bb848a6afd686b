// Command demo is the narrated tour behind "make demo": a golden Debian image, two disks on top of
// it, and two guests that write, stop and start again. Each guest must find its own files and none
// of the other's; otherwise the command fails.
package main
