package main

import (
	"os"
	"path/filepath"
)

func main() {
	os.Exit(run(arguments(os.Args), newApp()))
}

// backendName is a name of this program that stands for "cowblk serve", because QEMU's conventions
// have no place for a sub-command (see integration/50-cowblk.json).
const backendName = "cowblk-vhost-user-blk"

func arguments(argv []string) []string {
	if filepath.Base(argv[0]) == backendName {
		return append([]string{"serve"}, argv[1:]...)
	}
	return argv[1:]
}
