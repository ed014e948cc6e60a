"""What OCR engines read: signs drawn for this purpose and photographs that packages contain, with fixed labels."""
