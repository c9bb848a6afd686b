package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"cowblk/backend/daemon"
)

// frontEndRows describes the connected front-end, whether it reconnects after a restart of cowblk,
// and the pending one.
func frontEndRows(l *daemon.DiskInfo, socket string) (rows [][]string) {
	if f := l.FrontEnd; f != nil {
		rows = append(rows, []string{"front-end", frontEndText(f) + reconnectText(f.PID, socket)})
	}
	if f := l.Waiting; f != nil {
		rows = append(rows, []string{"waiting",
			frontEndText(f) + ", until the front-end disconnects"})
	}
	return rows
}

func frontEndText(f *daemon.FrontEnd) string {
	named := *f
	if named.Name == "" {
		named.Name = daemon.ProcessName(f.PID) // a confined process cannot read it
	}
	return named.String() + " since " + agoText(f.Since)
}

// reconnectText reports whether QEMU reconnects to a socket, according to its command line. It is
// empty for other programs.
func reconnectText(pid int32, socket string) string {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/cmdline")
	if err != nil {
		return "; whether it reconnects cannot be seen: see \"cowblk help attach\""
	}
	args := strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00")
	on, found := reconnects(args, socket)
	program := filepath.Base(args[0])
	switch {
	case on:
		return ", reconnects by itself"
	case found:
		return ", does not reconnect after a restart of cowblk: its chardev has no reconnect=1"
	case !strings.HasPrefix(program, "qemu") && program != "kvm":
		return ""
	}
	return ", plugged in while QEMU ran: by \"cowblk attach\" it reconnects; by libvirt (virsh attach-device) it does not after a restart of cowblk"
}

// reconnects searches QEMU's arguments for the chardev of a socket. found: it is there; on: it has
// reconnect.
func reconnects(args []string, socket string) (on, found bool) {
	for i, arg := range args {
		if i == 0 || !strings.HasSuffix(args[i-1], "-chardev") {
			continue
		}
		// QEMU doubles a comma inside a value.
		const comma = "\x00"
		options := strings.Split(strings.ReplaceAll(arg, ",,", comma), ",")
		if !slices.Contains(options, "path="+strings.ReplaceAll(socket, ",", comma)) {
			continue
		}
		found = true
		for _, o := range options {
			for _, key := range []string{"reconnect=", "reconnect-ms="} {
				if n, ok := strings.CutPrefix(o, key); ok && n != "0" && n != "" {
					on = true
				}
			}
		}
	}
	return on, found
}
