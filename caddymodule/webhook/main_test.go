package webhook

import (
	"testing"

	"github.com/iottunnel/iottunnel/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m) }
