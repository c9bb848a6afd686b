package store

import (
	"os"

	"cowblk/cow/shell"
	"cowblk/cow/vfs"
)

// CheckRaw refuses a file that is to be served without a store unless it can be the content of a
// disk. It refuses other image formats, compressed files, archives, and sizes that no disk has.
// LUKS is accepted: a guest may encrypt its whole disk. path is absolute. word is the option that
// accepts any format, for the advice; empty: any format is accepted. fsys nil: the operating
// system's.
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
	size, err := f.Size()
	if err != nil {
		return err
	}
	if size == 0 || size%SectorSize != 0 && word == "" {
		return rawSize(path, size)
	}
	if word == "" {
		return nil
	}
	format, err := probe(f)
	if err != nil {
		return err
	}
	if format.name == FormatRaw || format.kind == kindOther && format.disk {
		if size%SectorSize != 0 {
			return rawSize(path, size)
		}
		return nil
	}
	advice := format.advice(fsys, path, FormatRaw, word)
	switch {
	case format.name == FormatQcow2:
		advice = "import it, and serve a disk on it: cowblk import " + shell.Path(path) + " NAME; cowblk create DISK --from NAME\nif the guest is to see the qcow2 file itself: " + word
	case !format.disk:
		advice += "\nif the guest is to see the file itself: " + word
	}
	return refused(path, "format of the file", "raw", format.name, advice)
}

func rawSize(path string, size int64) error {
	return refused(path, "size of the file", expectedSize, quoteBytes(size), sizeAdvice(size))
}
