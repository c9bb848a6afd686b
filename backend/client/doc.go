// Package client asks the processes that serve a store's disks, through their control sockets. The
// lock of a disk names its process (store.Serving).
//
// Watch has one goroutine for each process, which receives its events until the process or Watch
// ends. UpdateUsage asks up to maxQueries processes at a time, with one goroutine for each, until
// it returns.
package client
