// Package daemon is a process that serves disks: it listens for front-ends, offers each disk as a
// backend.Device, answers commands on control sockets, promotes, watches space, and hands its disks
// to the next process.
//
// # Goroutines
//
// Every goroutine of the process besides those of its devices (package backend), who starts it,
// what it owns, how it ends:
//
//	goroutine           started by           owns                                ends
//	accept, one a disk  Export.Run           the listening socket, the Device    its context is done
//	watch pending       Export.session       the front-end that waits            the session ends
//	control             Daemon.Run           control socket and its clients      control.Server.Close
//	NBD                 nbd-server-start     NBD sockets and their clients       nbd-server-stop, or the exports have ended
//	seal watcher        Daemon.promote       nothing; it reports the sealing     the former head is sealed
//	thaw                Daemon.Run           a guest left frozen or paused       the guest runs, or two minutes have passed
//	hooks               Daemon.Run           the effects of QEMU's events        the exports have ended
//	QEMU's monitor      Daemon.Run           the connection that hooks listen to  Run returns
//	space monitor       Daemon.Run           file systems, requests parked for   the exports have ended
//	                                         want of space, the paused guest
//	checksummer         Daemon.Run           layers that get checksums           the exports have ended
//	NBD takeover        Daemon.Run           the exports of the old process      they are served again
package daemon
