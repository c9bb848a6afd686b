// Package daemon is a process that serves disks. Serve does all of it: it opens the disks, makes or
// inherits the sockets, offers each disk as a backend.Device, answers commands on control sockets,
// promotes, watches space, and hands the disks to the next process or closes them. Open, Daemon.Run
// and Daemon.Close are its steps. ExportTags serves tags over NBD, without a Daemon.
//
// Serve and Open change the process: they ignore SIGPIPE, Serve gives SIGQUIT to Go's runtime, and
// Options.Sandbox confines the process for good.
//
// # Goroutines
//
// Every goroutine of the process besides those of its devices (package backend), who starts it,
// what it owns, how it ends:
//
//	goroutine           started by           owns                                ends
//	Run                 Daemon.Start         nothing: cowblk run waits for QEMU  Run returns
//	accept, one a disk  Export.Run           the listening socket, the Device    its context is done
//	watch pending       Export.session       the front-end that waits            the session ends
//	control             Daemon.Run           control socket and its clients      control.Server.Close
//	NBD                 nbd-server-start     NBD sockets and their clients       nbd-server-stop, or the exports have ended
//	seal watcher        Daemon.promote       nothing; it reports the sealing     the former head is sealed
//	thaw                Daemon.Run           a guest left frozen or paused       the guest runs, or two minutes have passed
//	hooks               Daemon.Run           the effects of QEMU's events        the exports have ended
//	QEMU's monitor      Daemon.Run           the connection that hooks listen to  Run returns
//	space monitor       Daemon.Run           which file systems are low          the exports have ended
//	ENOSPC monitor      Daemon.Run           requests parked for want of space   the exports have ended
//	checksummer         Daemon.Run           layers that get checksums           the exports have ended
//	NBD takeover        Daemon.Run           the exports of the old process      they are served again
package daemon
