package registry

import (
	"os"
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childPath); path != "" {
		claimForEver(path) // this process is the child of TestKill
	}
	leak.Main(m)
}
