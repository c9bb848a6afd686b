// Package bytesize parses the sizes that people write: 512, 4K, 20G, 1.5T. The command line and the
// control socket use the same forms.
package bytesize
