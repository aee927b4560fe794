"""Where images come from: folders, zip files, tables, shards and saved datasets."""
