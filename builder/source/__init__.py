"""What users have: tars, folders, listings, captions, images. From them to samples."""
