"""What every room needs: errors, redaction, storage, words, versions, libraries. It knows nothing of the others."""
