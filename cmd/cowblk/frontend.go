package main

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"strings"

	"cowblk/backend"
)

// frontEndRows say who is connected to a served disk, whether it will come back after a restart of cowblk, and who waits.
func frontEndRows(l *backend.DiskInfo, socket string) (rows [][]string) {
	if f := l.FrontEnd; f != nil {
		rows = append(rows, []string{"front-end", frontEndText(f) + ", " + reconnectText(f.PID, socket)})
	}
	if f := l.Waiting; f != nil {
		rows = append(rows, []string{"waiting", frontEndText(f) + ", until the front-end goes"})
	}
	return rows
}

func frontEndText(f *backend.FrontEnd) string {
	named := *f
	if named.Name == "" {
		named.Name = backend.ProcessName(f.PID) // a confined process cannot see it
	}
	return named.String() + " since " + agoText(f.Since)
}

// reconnectText says whether QEMU's connection to a socket comes back by itself, as its command line has it.
func reconnectText(pid int32, socket string) string {
	line, err := os.ReadFile("/proc/" + strconv.Itoa(int(pid)) + "/cmdline")
	if err != nil {
		return "which may not reconnect: see \"cowblk help attach\""
	}
	switch on, found := reconnects(strings.Split(string(bytes.TrimSuffix(line, []byte{0})), "\x00"), socket); {
	case on:
		return "which reconnects by itself"
	case found:
		return "which does not reconnect after a restart of cowblk: its chardev has no reconnect=1"
	}
	return "plugged in while it ran: by libvirt (virsh attach-device) it does not reconnect after a restart of cowblk;\nby \"cowblk attach\" it does"
}

// reconnects looks for the chardev of a socket among QEMU's arguments. found: it is there; on: with reconnect.
func reconnects(args []string, socket string) (on, found bool) {
	for i, arg := range args {
		if i == 0 || !strings.HasSuffix(args[i-1], "-chardev") {
			continue
		}
		// A comma in a value is written twice.
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
