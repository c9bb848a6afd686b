package store

import (
	"os"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// CheckRaw refuses a file that is to be served as it is, without a store, unless it can be the content of a disk: not the
// container of another format, nor a compressed file or an archive. A guest may encrypt its whole disk, so LUKS passes.
// word is what takes the file nevertheless, for the advice. fsys nil: the operating system's.
func CheckRaw(fsys vfs.FS, path, word string) error {
	if fsys == nil {
		fsys = vfs.OS{}
	}
	if path == "" {
		return invalidf("the file to serve has an empty name")
	}
	if err := checkPathText("file", path); err != nil {
		return err
	}
	f, err := vfs.OpenImage(fsys, path, os.O_RDONLY)
	if err != nil {
		return refusedFile("file", path, err)
	}
	defer f.Close()
	format, err := probe(f)
	if err != nil {
		return err
	}
	if format.name == FormatRaw || format.kind == kindOther && format.disk {
		return nil
	}
	advice := format.advice(fsys, path, word)
	switch {
	case format.name == FormatQcow2:
		advice = "import it, and serve a disk on it: cowblk import " + shell.Path(path) + " NAME; cowblk create DISK --from NAME\nif the guest is to see the qcow2 file itself: " + word
	case !format.disk:
		advice += "\nif the guest is to see the file itself: " + word
	}
	return &Mismatch{File: path, What: "format of the file", Expected: "raw", Found: format.name, Advice: advice}
}
